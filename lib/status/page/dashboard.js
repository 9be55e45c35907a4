// The dashboard: fills the page from /status, /history and /samples. page.ts puts the text of these functions into the page; nothing is
// ever written as markup, so that no text of a run can become a part of the page.
import { barChart, chartKey, lineChart } from "./chart.js";
import { formatCount, formatDuration, formatNumber, formatPercent, formatSize, smoothed } from "./format.js";

/** @param {string} id @returns {HTMLElement} */
export function byId(id) {
  return document.getElementById(id);
}

/** Writes only what changed, so that screen readers and selections are left in peace. @param {string} id @param {string} text */
export function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** The numbers. @param {object} s snapshot */
export function showSnapshot(s) {
  const names = {
    starting: "Starting",
    training: "Training",
    evaluating: "Evaluating",
    saving: "Saving",
    stopping: "Stopping",
    stopped: "Stopped",
    finished: "Finished",
    failed: "Failed",
  };
  setText("name", s.name ?? "A run is starting");
  setText("state", names[s.state]);
  byId("state").dataset.state = s.state;
  const methods = { "none": "LoRA", "mix": "LoRA, mixed with validation data", "meta-lora": "META-LORA" };
  setText("what", [s.model, s.method && methods[s.method]].filter(Boolean).join(" · "));
  byId("message").hidden = s.message === null;
  byId("message").dataset.state = s.state;
  setText("message", s.message ?? "");

  setText("percent", formatPercent(s.progress));
  setText("steps", s.steps === null ? "" : `step ${formatCount(s.step)} of ${formatCount(s.steps)}`);
  byId("fill").style.width = `${100 * s.progress}%`;
  byId("bar").setAttribute("aria-valuenow", String(Math.floor(100 * s.progress)));

  setText("loss", formatNumber(s.loss_smoothed));
  setText("loss-more", s.loss === null ? "" : `last batch ${formatNumber(s.loss)}`);
  setText("lr", formatNumber(s.lr));
  setText("lr-more", s.grad_norm === null ? "" : `gradient ${formatNumber(Number(s.grad_norm.toPrecision(3)))}`);
  setText("speed", formatCount(s.tokens_per_second));
  setText("speed-more", "tokens a second");
  const { used_bytes: used, planned_bytes: planned } = s.memory;
  setText("memory", formatSize(used ?? planned));
  setText("memory-more", planned === null ? "" : used === null ? "planned" : `of ${formatSize(planned)} planned`);
  byId("meter").hidden = used === null || planned === null;
  byId("meter-fill").style.width = `${Math.min(100, 100 * (used ?? 0) / (planned || 1))}%`;
  const effective = s.effective_sample_size;
  byId("effective-tile").hidden = effective === null;
  byId("effective-card").hidden = byId("weights-card").hidden = s.weights === null;
  if (effective) {
    setText("effective", formatNumber(effective.size === null ? null : Math.round(effective.size * 10) / 10));
    setText("effective-more", `of ${formatCount(effective.samples)} in a batch`);
  }
  setText("epoch", s.epoch === null ? "–" : formatCount(s.epoch + 1));
  setText("epoch-more", s.skipped_batches === 0 ? "no batch skipped" : `${formatCount(s.skipped_batches)} batches skipped`);
  showEvaluations(s.evaluations);

  const facts = [
    ["Device", s.device],
    ["Trained parameters", s.parameters && formatCount(s.parameters)],
    ["Tokens trained on", s.tokens ? formatCount(s.tokens) : null],
    ["Started", new Date(s.started_at).toLocaleString()],
    ["Continued from", s.resumed_at ? `step ${formatCount(s.resumed_at)}` : null],
    [
      "Last checkpoint",
      s.checkpoint && `step ${formatCount(s.checkpoint.step)}, ${new Date(s.checkpoint.at).toLocaleTimeString()}`,
    ],
    ["Last fault", s.last_fault],
    ["Run", s.run_id],
    ["metalora", s.metalora],
  ];
  const text = JSON.stringify(facts);
  if (byId("facts").dataset.text !== text) {
    byId("facts").dataset.text = text;
    byId("facts").replaceChildren(
      ...facts.filter(([, value]) => value).map(([name, value]) => {
        const row = document.createElement("div"), term = document.createElement("dt"), fact = document.createElement("dd");
        term.textContent = name;
        fact.textContent = value;
        row.append(term, fact);
        return row;
      }),
    );
  }
  document.title = `${formatPercent(s.progress)} · ${s.name ?? "starting"} · metalora`;
}

/** @param {{ name: string, step: number, loss: number | null, accuracy: number | null, samples: number }[]} evaluations */
export function showEvaluations(evaluations) {
  byId("evaluation-table").hidden = evaluations.length === 0;
  byId("evaluation-none").hidden = evaluations.length > 0;
  byId("evaluation-rows").replaceChildren(...evaluations.map((each) => {
    const row = document.createElement("tr");
    const cells = [
      each.name === "test" ? "Test" : "Validation",
      formatCount(each.step),
      formatNumber(each.loss),
      formatNumber(each.perplexity),
      each.accuracy === null ? "–" : `${(100 * each.accuracy).toFixed(1)} %`,
      formatCount(each.samples),
    ];
    row.append(...cells.map((text, i) => {
      const cell = document.createElement(i === 0 ? "th" : "td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

/** The charts. @param {object} h history @param {object} s snapshot */
export function showCharts(h, s) {
  const steps = h.step;
  const last = (values) => values.findLast((value) => value !== null) ?? null;
  const first = (values) => values.find((value) => value !== null) ?? null;
  const label = (id, text) => byId(id).setAttribute("aria-label", text);
  const course = (name, values) =>
    `${name} over ${formatCount(steps.at(-1) ?? 0)} steps: from ${formatNumber(first(values))} to ${formatNumber(last(values))}`;
  const of = (name) =>
    h.evaluations.filter((each) => each.name === name && each.loss !== null).map(({ step, loss }) => [step, loss]);

  const reach = Math.ceil(steps.length / 30);
  const mean = smoothed(h.loss, reach);
  const guided = h.validation_loss.some((value) => value !== null);
  const series = [
    { name: "Batches", style: "a faint", values: h.loss },
    ...(guided ? [{ name: "Validation batches", style: "b thin", values: smoothed(h.validation_loss, reach) }] : []),
    { name: "Training, smoothed", style: "a", values: mean },
  ];
  const dots = [
    { name: "Validation data", style: "b", points: of("validation") },
    { name: "Test data", style: "c", points: of("test") },
  ].filter(({ points }) => points.length > 0);
  lineChart(byId("loss-chart"), { steps, series, dots });
  label("loss-chart", course("Training loss", mean));
  const keys = [
    ...series.toReversed().map(({ name, style }) => [name, style]),
    ...dots.map(({ name, style }) => [name, `${style} round`]),
  ];
  const text = keys.join();
  if (byId("loss-keys").dataset.text !== text) {
    byId("loss-keys").dataset.text = text;
    byId("loss-keys").replaceChildren(...keys.map(([name, style]) => chartKey(name, style)));
  }
  const single = (id, name, values, options = {}) => {
    const mean = smoothed(values, options.noisy ? reach : 0);
    const raw = options.noisy ? [{ name: "Batches", style: "a faint", values }] : [];
    lineChart(byId(id), { steps, series: [...raw, { name, style: "a", values: mean }], ...options });
    label(id, course(name, mean));
  };
  single("lr-chart", "Learning rate", h.lr, { zero: true });
  single("speed-chart", "Tokens a second", h.tokens_per_second, { zero: true, format: formatCount });
  single("norm-chart", "Gradient norm", h.grad_norm, { zero: true, noisy: true });
  if (s.weights === null) return;
  const percents = h.effective_share.map((share) => share === null ? null : 100 * share);
  single("effective-chart", "Effective share", percents, {
    zero: true,
    noisy: true,
    most: 100,
    format: (value) => `${formatNumber(Math.round(value))} %`,
  });
  const { edges, recent, zeros, total } = s.weights;
  barChart(byId("weights-chart"), edges, recent, "× the even share");
  const counted = recent.reduce((a, b) => a + b, 0);
  label("weights-chart", `Weights of the last ${formatCount(counted)} samples, in multiples of the even share`);
  setText("weights-note", `the last ${formatCount(counted)} samples; ${formatPercent(zeros / total)} of all had weight 0`);
}

/** @param {{ most: object[], least: object[] }} samples */
export function showSamples(samples) {
  for (const end of ["most", "least"]) {
    byId(end).replaceChildren(...samples[end].map(({ id, source, weight, seen, prompt, response }) => {
      const item = document.createElement("li"), head = document.createElement("p"), text = document.createElement("p");
      const strong = document.createElement("b");
      strong.textContent = `${formatNumber(Math.round(weight * 100) / 100)}×`;
      head.append(
        strong,
        ` ${id}${source === null ? "" : ` · ${source}`} · seen ${seen === 1 ? "once" : `${formatCount(seen)} times`}`,
      );
      const mark = document.createElement("mark");
      mark.textContent = response ?? "";
      text.append(prompt ?? "", " ", mark);
      item.append(head, ...(prompt === null && response === null ? [] : [text]));
      return item;
    }));
  }
  byId("samples").hidden = samples.most.length === 0;
}

/** Starts everything. */
export function dashboard() {
  let snapshot = null,
    history = null,
    source = null,
    heard = 0,
    historyAt = -Infinity,
    samplesAt = -Infinity,
    drawn = "",
    waiting = null;
  const over = () => snapshot !== null && ["finished", "failed", "stopped"].includes(snapshot.state);
  const load = async (path) => {
    const response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(8000) });
    if (!response.ok) throw new Error(String(response.status));
    return response.json();
  };
  const link = (state, text) => {
    document.body.dataset.link = state;
    setText("link", text);
  };
  const tick = () => {
    if (!snapshot) return;
    const since = over() || document.body.dataset.link === "lost" ? 0 : (performance.now() - heard) / 1000;
    const elapsed = snapshot.elapsed_seconds + since;
    setText("elapsed", `${formatDuration(elapsed)} so far`);
    const left = snapshot.seconds_left;
    setText(
      "left",
      over()
        ? `${snapshot.state === "finished" ? "in" : "after"} ${formatDuration(elapsed)}`
        : left === null
        ? ""
        : `${formatDuration(Math.max(0, left - since))} left`,
    );
    byId("elapsed").hidden = over();
  };
  const draw = () => {
    if (!history || !snapshot || document.hidden) return;
    showCharts(history, snapshot);
    drawn = `${innerWidth}`;
  };
  const more = async () => {
    const now = performance.now();
    try {
      historyAt = now;
      history = await load("history");
      draw();
      if (snapshot.samples_allowed && (over() || now - samplesAt > 5000)) {
        samplesAt = now;
        showSamples(await load("samples"));
      }
    } catch { // what fetches the status says that the connection is lost
    }
  };
  // At most every 2 s, and once more after the last change.
  const soon = () => {
    if (over()) more();
    else {waiting ??= setTimeout(() => {
        waiting = null;
        if (!document.hidden) more();
      }, Math.max(0, historyAt + 2000 - performance.now()));}
  };
  const take = (next) => {
    const changed = !snapshot || next.step !== snapshot.step || next.state !== snapshot.state || next.run_id !== snapshot.run_id;
    snapshot = next;
    heard = performance.now();
    showSnapshot(next);
    tick();
    if (changed) soon();
    if (over()) {
      source?.close();
      source = null;
      link("over", "The run is over");
    }
  };
  const lost = () => {
    if (over()) return; // the program has ended with its run
    const at = snapshot ? ` · numbers of ${new Date(Date.now() - (performance.now() - heard)).toLocaleTimeString()}` : "";
    link("lost", `Connection lost, trying again${at}`);
  };
  const poll = async () => {
    try {
      const next = await load("status");
      if (!source) link("polling", "Updated every 3 s");
      take(next);
    } catch {
      lost();
    }
  };
  const listen = () => {
    if (source || typeof EventSource === "undefined") return;
    const mine = source = new EventSource("events");
    mine.addEventListener("status", ({ data }) => {
      link("live", "Live");
      take(JSON.parse(data));
    });
    mine.onerror = () => {
      mine.close();
      if (source === mine) source = null;
      poll();
    };
  };
  // Streams break, and a broken one may look like a silent one: whenever nothing was heard for a while, ask.
  setInterval(() => {
    tick();
    const silent = performance.now() - heard;
    if (source && silent > 20_000) poll();
  }, 1000);
  setInterval(() => {
    if (source || document.hidden) return;
    if (!over()) listen();
    poll();
  }, 3000);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && snapshot) more();
  });
  addEventListener("resize", () => {
    if (drawn !== `${innerWidth}`) draw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  listen();
  poll();
}
