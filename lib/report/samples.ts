/** Samples of a report, with their text. */
import { number } from "./charts.ts";
import { type Html, markup } from "./html.ts";
import type { SampleLine } from "./input.ts";

/** Samples shown at each end. */
export const SHOWN = 10;
const TEXT = 700; // characters of a sample's prompt, and of its response

/** A bar as long as a share of the column. */
export const bar = (share: number): Html => markup`<td class="share"><div style="width:${(100 * share).toFixed(1)}%"></div></td>`;

/** Samples with their numbers and text. */
export function sampleList(samples: readonly SampleLine[], batchSize: number): Html {
  if (samples.length === 0) return markup`<p class="none">There are no more samples.</p>`;
  return markup`${
    samples.map((sample) => {
      const { id, source, prompt, response, weight, similarity, loss, seen } = sample;
      const numbers = [
        ...weight === null ? [] : [`weight ${(weight * batchSize).toFixed(2)} × even share`],
        ...similarity === null ? [] : [`similarity ${number(similarity)}`],
        ...loss === null ? [] : [`last loss ${number(loss)}`],
        `seen ${seen} ${seen === 1 ? "time" : "times"}`,
        ...source === null ? [] : [source],
      ];
      return markup`<article><h3>${id} <small>${numbers.join(" · ")}</small></h3>
<pre>${cut(prompt)}<mark>${cut(response)}</mark></pre></article>
`;
    })
  }`;
}

/** Without weights, the last loss tells which samples are odd. */
export function lossSamples(samples: readonly SampleLine[]): Html {
  const seen = samples.filter((sample): sample is SampleLine & { loss: number } => sample.loss !== null);
  if (seen.length === 0) return markup``;
  const ranked = [...seen].sort((a, b) => b.loss - a.loss);
  return markup`<section><h2>Samples with the highest loss</h2>
<p>This run gave no weights (reweight.method is not meta-lora). The loss is the one when the sample was last trained on.</p>
${sampleList(ranked.slice(0, SHOWN), 1)}</section>
<section><h2>Samples with the lowest loss</h2>${sampleList(ranked.slice(SHOWN).slice(-SHOWN).reverse(), 1)}</section>`;
}

function cut(text: string): string {
  const characters = Array.from(text);
  return characters.length <= TEXT
    ? text
    : `${characters.slice(0, TEXT).join("")} … (${characters.length - TEXT} more characters)`;
}
