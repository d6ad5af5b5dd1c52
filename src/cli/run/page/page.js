// Shows /pipelines.json, updated every second.
"use strict";

const pipelines = new Map();
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = (x) => x == null ? "–" : typeof x === "number" ? String(+x.toPrecision(5)) : String(x);

function element(tag, text, name) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

// A computed color: canvas does not support light-dark().
function resolved(name) {
  const probe = element("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function axes(extra) {
  const axis = { stroke: resolved("--faint"), grid: { stroke: resolved("--line"), width: 1 }, ticks: { stroke: resolved("--line") } };
  return [{ ...axis, ...(extra && extra[0]) }, { ...axis, size: 60, ...(extra && extra[1]) }];
}

function chart(at, series, options) {
  const made = new uPlot({
    width: at.clientWidth || 400, height: 190, legend: { show: false }, cursor: { drag: { x: false, y: false } },
    series: [{}, ...series], axes: axes(), scales: { y: { range: (_, __, max) => [0, Math.max(1, max) * 1.05] } }, ...options,
  }, [[], ...series.map(() => [])], at);
  new ResizeObserver(() => made.setSize({ width: at.clientWidth, height: 190 })).observe(at);
  return made;
}

const line = (name, label) => ({ label, stroke: resolved(name), width: 1.5, points: { show: false } });

// Histogram with a logarithmic axis, and the threshold as a line.
function histogram(at, model) {
  const threshold = model.threshold;
  return chart(at, [{ label: "rows", stroke: resolved("--blue"), fill: resolved("--blue"), paths: uPlot.paths.bars({ size: [0.9, 100] }), points: { show: false } }], {
    scales: { x: { time: false, distr: 3 }, y: { range: (_, __, max) => [0, Math.max(1, max) * 1.05] } },
    axes: axes([{ values: (_, splits) => splits.map((x) => x != null && /^[15]/.test(x.toExponential()) ? x : null) }]),
    hooks: {
      draw: [(u) => {
        if (threshold == null) return;
        const x = u.valToPos(threshold, "x", true);
        u.ctx.save();
        u.ctx.strokeStyle = u.ctx.fillStyle = resolved("--red");
        u.ctx.lineWidth = 2;
        u.ctx.beginPath();
        u.ctx.moveTo(x, u.bbox.top);
        u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
        u.ctx.stroke();
        u.ctx.restore();
      }],
    },
  });
}

function open(name) {
  const section = document.getElementById("pipeline").content.firstElementChild.cloneNode(true);
  document.getElementById("pipelines").append(section);
  section.dataset.pipeline = name;
  const at = (selector) => section.querySelector(selector);
  at(".name").textContent = name;
  return {
    at,
    models: new Map(),
    throughput: chart(at(".throughput"), [line("--blue", "read"), line("--green", "written")]),
    lag: chart(at(".lag"), [line("--blue", "lag")]),
    anomalies: chart(at(".anomalies"), [line("--red", "anomalies")]),
  };
}

function show(pipeline) {
  if (!pipelines.has(pipeline.name)) pipelines.set(pipeline.name, open(pipeline.name));
  const shown = pipelines.get(pipeline.name);
  const state = shown.at(".state");
  state.textContent = pipeline.state;
  state.className = `state ${pipeline.state}`;
  shown.at(".trouble").textContent = pipeline.state === "waiting" ? pipeline.trouble : "";
  const lag = Object.values(pipeline.lag).reduce((sum, lag) => sum + lag, 0);
  const total = pipeline.total;
  const totals = [["read", total.records_in], ["written", total.records_out], ["lag", lag], ["anomalous", total.anomalies],
    ["skipped", total.skipped], ["dead-lettered", total.dead_lettered], ["restarts", total.restarts]];
  shown.at(".totals").replaceChildren(...totals.map(([name, n]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", whole.format(n)));
    return pair;
  }));
  const column = (name) => pipeline.seconds.map((second) => second[name]);
  shown.throughput.setData([column("at"), column("records_in"), column("records_out")]);
  shown.lag.setData([column("at"), column("lag")]);
  shown.anomalies.setData([column("at"), column("anomalies")]);
  for (const [name, model] of Object.entries(pipeline.models)) showModel(shown, name, model);
  shown.at("tbody").replaceChildren(...pipeline.anomalies.map(row));
  shown.at(".none").hidden = pipeline.anomalies.length > 0;
  shown.at("table").hidden = pipeline.anomalies.length === 0;
}

function showModel(shown, name, model) {
  if (!shown.models.has(name)) {
    const figure = element("figure");
    figure.append(element("figcaption"), element("div", undefined, "errors"));
    shown.at(".models").append(figure);
    shown.models.set(name, { figure, chart: null });
  }
  const known = shown.models.get(name);
  const figure = known.figure;
  const threshold = model.threshold == null ? "no threshold" : `threshold ${short(model.threshold)}`;
  figure.firstChild.textContent = `Errors of ${name}: ${threshold}, ${whole.format(model.anomalies)} anomalous`;
  const first = model.counts.findIndex((n) => n > 0);
  const last = model.counts.length - [...model.counts].reverse().findIndex((n) => n > 0);
  if (first < 0) return;
  // include the threshold
  const at = model.threshold == null ? first : model.edges.findLastIndex((edge) => edge <= model.threshold);
  const bins = [Math.max(0, Math.min(first, at) - 1), Math.min(model.counts.length, Math.max(last, at + 1) + 1)];
  // a logarithmic axis needs data
  known.chart ??= histogram(figure.lastChild, model);
  known.chart.setData([model.edges.slice(...bins), model.counts.slice(...bins)]);
}

function row(anomaly) {
  const made = element("tr");
  const causes = element("ul");
  for (const c of anomaly.contributions) {
    causes.append(element("li", `${c.feature} ${Math.round(100 * (c.share ?? 0))} % (${short(c.value)}, ${short(c.expected)})`));
  }
  const from = element("td");
  from.append(causes);
  made.append(element("td", new Date(1000 * anomaly.at).toLocaleTimeString("en-GB")), element("td", anomaly.model),
    element("td", short(anomaly.error)), from, element("td", JSON.stringify(anomaly.record), "record"));
  return made;
}

async function refresh() {
  const connection = document.getElementById("connection");
  try {
    const status = await (await fetch("/pipelines.json")).json();
    document.getElementById("version").textContent = status.version;
    status.pipelines.forEach(show);
    connection.textContent = "live";
    connection.className = "";
  } catch (error) {
    connection.textContent = "connection lost";
    connection.className = "lost";
    console.error(error);
  }
  setTimeout(refresh, 1000);
}

refresh();
