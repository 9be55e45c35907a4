/** Style sheet of the dashboard: system fonts, light and dark, from 320 pixels on. */
export const STYLE = `
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #17202b; --soft: #566273; --rule: #e6e9ee; --line: #dde2e8; --shade: 0 1px 2px #1720280d, 0 4px 16px #17202808;
  --a: #2459c4; --b: #b05a06; --c: #0c7a54; --bad: #c02626; --track: #e8ebf0; --wash: #eaf1fd;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1318; --card: #171d24; --ink: #e7ecf2; --soft: #9ba8b7; --rule: #252e38; --line: #242c36; --shade: none;
    --a: #7fb2ff; --b: #f2ab63; --c: #62d3a4; --bad: #ff8a80; --track: #28313c; --wash: #1b2a42;
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
header, main, footer { max-width: 72rem; margin: 0 auto; padding: 0 1.5rem; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem 1rem; padding-top: 1.75rem; padding-bottom: 1.25rem; }
.title { flex: 1 1 14rem; min-width: 0; }
h1 { margin: 0; font-size: 1.45rem; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; overflow-wrap: anywhere; }
.title p { margin: .1rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.signs { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem .9rem; }
.pill { --tone: var(--a); display: inline-flex; align-items: center; gap: .5rem; padding: .3rem .8rem .3rem .7rem; border-radius: 99rem; background: color-mix(in srgb, var(--tone) 11%, transparent); color: var(--tone); font-weight: 600; font-size: .9rem; }
.pill::before { content: ""; width: .5rem; height: .5rem; border-radius: 50%; background: var(--tone); }
.pill[data-state="evaluating"], .pill[data-state="saving"], .pill[data-state="stopping"], .pill[data-state="stopped"] { --tone: var(--b); }
.pill[data-state="finished"] { --tone: var(--c); }
.pill[data-state="failed"] { --tone: var(--bad); }
.link { color: var(--soft); font-size: .85rem; }
.link::before { content: ""; display: inline-block; width: .45rem; height: .45rem; margin-right: .45rem; border-radius: 50%; background: var(--soft); vertical-align: .06em; }
[data-link="live"] .link::before, [data-link="polling"] .link::before { background: var(--c); }
[data-link="lost"] .link { color: var(--bad); font-weight: 600; }
[data-link="lost"] .link::before { background: var(--bad); }
[data-link="lost"] main { opacity: .62; }
main { display: grid; gap: 1rem; padding-bottom: 1rem; }
.card { min-width: 0; padding: 1.1rem 1.25rem; background: var(--card); border: 1px solid var(--line); border-radius: .85rem; box-shadow: var(--shade); }
.run .top { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: 0 1rem; }
.run .top > div { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .7rem; }
#percent { font-size: 2.1rem; line-height: 1.2; font-weight: 650; letter-spacing: -.02em; }
#left { font-size: 1.1rem; font-weight: 600; }
#steps, #elapsed { color: var(--soft); }
.track { height: .55rem; margin: .7rem 0 .25rem; border-radius: 99rem; background: var(--track); overflow: hidden; }
.track i, .meter i { display: block; height: 100%; width: 0; border-radius: inherit; background: var(--a); }
.message { margin: .8rem 0 0; padding: .6rem .8rem; border-radius: .5rem; background: var(--wash); overflow-wrap: anywhere; }
.message[data-state="failed"] { background: color-mix(in srgb, var(--bad) 12%, transparent); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.2rem, 1fr)); gap: 1rem; margin: 0; }
.tiles dt { color: var(--soft); font-size: .85rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: clamp(1.1rem, 5.6vw, 1.5rem); line-height: 1.3; font-weight: 620; letter-spacing: -.01em; overflow-wrap: anywhere; }
.tiles .more { min-height: 1.3em; color: var(--soft); font-size: .82rem; line-height: 1.35; }
.meter { height: .28rem; margin-top: .35rem; border-radius: 99rem; background: var(--track); overflow: hidden; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; }
.wide { grid-column: 1 / -1; }
h2 { margin: 0; font-size: .95rem; font-weight: 620; }
.head { display: flex; flex-wrap: wrap; align-items: baseline; justify-content: space-between; gap: .1rem 1rem; margin-bottom: .5rem; }
.head small, .keys { color: var(--soft); font-size: .82rem; }
.keys { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; }
.key { display: flex; align-items: center; gap: .45rem; white-space: nowrap; }
.key::before { content: ""; width: .95rem; height: 0; border-top: 2px solid var(--tone); border-radius: 1px; }
.key.round::before { width: .55rem; height: .55rem; border: 0; border-radius: 50%; background: var(--tone); }
.key.faint::before { opacity: .4; }
.key.thin::before { border-top-width: 1.5px; }
.a { --tone: var(--a); } .b { --tone: var(--b); } .c { --tone: var(--c); }
figure { position: relative; margin: 0; height: 10rem; border-radius: .35rem; touch-action: pan-y; }
.wide figure { height: 17.5rem; }
figure svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
figure:focus-visible, a:focus-visible, summary:focus-visible { outline: 2px solid var(--a); outline-offset: 3px; }
svg text { font-size: 11.5px; fill: var(--soft); }
.rule { stroke: var(--rule); fill: none; }
.line { fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { stroke-width: 1; opacity: .33; }
.line.thin { stroke-width: 1.5; }
.line.point { stroke-width: 6; }
.dot { fill: var(--tone); stroke: var(--card); stroke-width: 2; }
svg .column { fill: var(--a); opacity: .85; }
svg .column:hover { opacity: 1; }
.even { stroke: var(--ink); stroke-dasharray: 3 4; opacity: .75; fill: none; }
.cursor { stroke: var(--soft); opacity: .6; fill: none; }
.tip { position: absolute; top: -.4rem; left: 0; z-index: 1; padding: .4rem .65rem; border-radius: .5rem; background: var(--card); border: 1px solid var(--line); box-shadow: 0 4px 18px #0003; font-size: .82rem; pointer-events: none; white-space: nowrap; }
.tip b { display: block; font-weight: 600; }
.tip i { margin-left: auto; padding-left: 1rem; font-style: normal; font-weight: 600; }
.none { position: absolute; inset: 0; display: grid; place-items: center; margin: 0; color: var(--soft); font-size: .9rem; }
.evaluations { position: relative; min-height: 7rem; }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; }
th, td { padding: .4rem 1rem .4rem 0; text-align: right; font-weight: 400; border-top: 1px solid var(--rule); white-space: nowrap; }
thead th { border: 0; color: var(--soft); font-size: .82rem; }
th:first-child { text-align: left; }
th:last-child, td:last-child { padding-right: 0; }
.samples { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1rem; }
ol { margin: 0; padding: 0; list-style: none; }
li { padding: .55rem 0; border-top: 1px solid var(--rule); }
li p { margin: 0; overflow-wrap: anywhere; }
li p:first-child { color: var(--soft); font-size: .85rem; }
li b { color: var(--ink); }
mark { background: var(--wash); color: inherit; border-radius: .2rem; }
#facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .6rem 1.5rem; margin: 0; }
#facts dt { color: var(--soft); font-size: .82rem; }
#facts dd { margin: 0; overflow-wrap: anywhere; }
footer { display: flex; flex-wrap: wrap; gap: .2rem 1.25rem; padding-top: .25rem; padding-bottom: 2.5rem; color: var(--soft); font-size: .85rem; }
footer a { color: inherit; }
noscript p { margin: 0; }
@media (prefers-reduced-motion: no-preference) {
  .track i, .meter i { transition: width .5s ease-out; }
  .pill[data-state="training"]::before { animation: breathe 2.6s ease-in-out infinite; }
  @keyframes breathe { 50% { opacity: .35; } }
}
@media (max-width: 46rem) {
  header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  header { padding-top: 1.1rem; padding-bottom: .9rem; }
  main, .tiles, .charts, .samples { gap: .75rem; }
  .charts, .samples { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .card { padding: .9rem 1rem; border-radius: .75rem; }
  .tiles .value { font-size: 1.3rem; }
  #effective-tile[hidden] + #epoch-tile { grid-column: 1 / -1; }
  .wide figure { height: 13rem; }
  .spare, td:nth-child(4) { display: none; }
  table { font-size: .93rem; }
  th, td { padding-right: .4rem; }
}
@media (forced-colors: active) { .track i, .meter i, .pill::before { forced-color-adjust: none; } }
`;
