/** Style sheet of the report: system fonts, colours for light and dark, readable when printed. */
export const STYLE = `
:root { --paper: #fff; --ink: #1c2430; --soft: #5d6877; --rule: #dfe4ea; --card: #f6f8fa; --a: #2563c9; --b: #b45309; --c: #0f7b54; --d: #7c3aed; --e: #be185d; --mark: #e7f0fd; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #12161c; --ink: #e3e8ee; --soft: #98a3b1; --rule: #2b333d; --card: #1a2028; --a: #7db0ff; --b: #f0a35e; --c: #5fd0a0; --d: #b79cff; --e: #f58ab8; --mark: #1d3354; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: .95rem; margin: 0 0 .35rem; overflow-wrap: anywhere; }
small, .none, .legend, dt { color: var(--soft); font-weight: normal; }
p { margin: .25rem 0 .75rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: .75rem 1.25rem; margin: 0; padding: 1rem; background: var(--card); border-radius: .5rem; }
.facts dt { font-size: .8rem; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.chart { margin: .5rem 0 1rem; }
.unit { margin: 0 0 .15rem; color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
tbody th { width: 14rem; font-weight: normal; font-size: inherit; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.grid { stroke: var(--rule); fill: none; }
.axis { stroke: var(--soft); fill: none; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line.faint { stroke: var(--a); stroke-width: 1; opacity: .3; }
.line.a { stroke: var(--a); } .line.b { stroke: var(--b); } .line.c { stroke: var(--c); } .line.d { stroke: var(--d); } .line.e { stroke: var(--e); }
.line.mark { stroke: var(--ink); stroke-width: 1; stroke-dasharray: 4 4; }
.dot { stroke: var(--paper); stroke-width: 1.5; }
.dot.a, .bar.a { fill: var(--a); } .dot.b { fill: var(--b); } .dot.c { fill: var(--c); } .dot.d { fill: var(--d); } .dot.e { fill: var(--e); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .85rem; }
.key { display: inline-block; width: 1.1rem; height: 0; margin-right: .4rem; border-top: 2px solid; vertical-align: middle; }
.key.dots { width: .6rem; height: .6rem; border: 0; border-radius: 50%; background: currentcolor; }
.key.a { color: var(--a); } .key.b { color: var(--b); } .key.c { color: var(--c); } .key.d { color: var(--d); } .key.e { color: var(--e); } .key.faint { color: var(--a); opacity: .35; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: normal; font-size: .85rem; }
.n { text-align: right; white-space: nowrap; }
thead .n { white-space: normal; overflow-wrap: normal; } td:first-child { min-width: 6rem; }
.share { width: 28%; } .share div { height: .7rem; min-width: 1px; background: var(--a); border-radius: 2px; }
article { margin: .75rem 0; padding: .75rem 1rem; background: var(--card); border-radius: .5rem; }
pre { margin: 0; font: .85rem/1.45 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: var(--mark); color: inherit; border-radius: 2px; }
details { margin-top: 2.5rem; }
summary { cursor: pointer; font-weight: 600; }
details pre { margin-top: .75rem; padding: 1rem; background: var(--card); border-radius: .5rem; }
@media (max-width: 40rem) {
  svg text { font-size: 22px; }
  .line { stroke-width: 4; } .line.faint { stroke-width: 2; } .dot { r: 8px; }
  .share { display: none; }
  th, td { padding-right: .5rem; font-size: .85rem; }
  tbody th { width: 9rem; }
}
@media print { details { display: none; } article, section { break-inside: avoid; } }
`;
