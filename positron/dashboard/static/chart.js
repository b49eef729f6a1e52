// Draw several curves in one chart with uPlot (vendor/). A curve is {name, color, dash, x: [], y: []} with increasing x.

import { count, duration, flops, measured, short } from "./format.js";

const NAMES = { step: "optimizer steps", tokens: "tokens", flops: "training FLOPs", time: "time" };
const SHOW = { step: count, tokens: count, flops, time: duration };
const CLOCK = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 864000];
const MAX_MARKED_POINTS = 60; // a curve with at most as many points shows each point as a dot

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Compute the exponential moving average, corrected as in Adam for its bias towards zero at the beginning.
export function smoothed(values, weight) {
  let mean = 0;
  let share = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return mean / share;
  });
}

// Return the curve without points that cannot be drawn: missing numbers, and numbers <= 0 on a logarithmic axis.
function drawable(curve, { logX, logY }) {
  const kept = curve.x.map((x, i) => i).filter((i) => {
    const [x, y] = [curve.x[i], curve.y[i]];
    return Number.isFinite(x) && Number.isFinite(y) && (!logX || x > 0) && (!logY || y > 0);
  });
  return { ...curve, x: kept.map((i) => curve.x[i]), y: kept.map((i) => curve.y[i]) };
}

function axes({ x, key }) {
  const common = {
    stroke: style("--faint"), grid: { stroke: style("--line"), width: 1 }, ticks: { show: false },
    font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
  };
  return [
    { ...common, label: NAMES[x], labelSize: 20, space: 70, values: (_, splits) => splits.map((v) => v === null ? "" : SHOW[x](v)),
      ...(x === "time" ? { incrs: CLOCK } : {}) },
    { ...common, label: key, labelSize: 20, size: 60, values: (_, splits) => splits.map((v) => v === null ? "" : short(v)) },
  ];
}

export class Chart {
  constructor(host, legend) {
    [this.host, this.legend, this.plot, this.zoomed] = [host, legend, null, false];
    this.size = () => ({ width: host.clientWidth, height: host.clientHeight });
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(host);
    host.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  // Draw curves. options: {key, x, smooth, logX, logY, floors: [{bpb, name, color}]}; floors are drawn as horizontal
  // lines. Returns whether a curve has points.
  show(curves, options) {
    const lines = curves.map((curve) => drawable(curve, options)).filter((curve) => curve.x.length);
    const tables = [];
    const series = [{}];
    this.items = [];
    const add = (x, y, line, item) => {
      tables.push([x, y]);
      series.push({ spanGaps: true, points: { show: false }, ...line });
      if (item) this.items.push({ ...item, place: tables.length, last: y[y.length - 1] });
    };
    for (const { name, color, dash, x, y } of lines) {
      const stroke = style(color);
      const marked = y.length <= MAX_MARKED_POINTS;
      if (options.smooth) add(x, y, { stroke, width: 1, alpha: 0.25 });
      add(x, options.smooth ? smoothed(y, options.smooth) : y,
        { stroke, width: 2, dash, points: { show: marked, size: y.length === 1 ? 11 : 5, fill: stroke } }, { name, color, dash });
    }
    // The line of a floor spans all curves. If the curves have a single x value, the line begins at 0 (log axis: at half).
    const ends = lines.flatMap(({ x }) => [x[0], x[x.length - 1]]);
    let [from, to] = [Math.min(...ends), Math.max(...ends)];
    if (from === to) from = options.logX ? to / 2 : 0;
    for (const { bpb, name, color } of lines.length && to > from ? options.floors : []) {
      add([from, to], [bpb, bpb], { stroke: style(color), width: 1.5, dash: [6, 5] }, { name, color, dash: [6, 5] });
    }
    this.draw(tables, series, options);
    this.list();
    return lines.length > 0;
  }

  draw(tables, series, options) {
    const data = tables.length ? uPlot.join(tables) : [[], []];
    const shape = JSON.stringify([options, series]);
    if (this.plot && shape === this.shape) {
      this.plot.setData(data, !this.zoomed);
      return;
    }
    [this.shape, this.zoomed] = [shape, false];
    this.plot?.destroy();
    const log = (yes) => (yes ? { distr: 3 } : {});
    this.plot = new uPlot({
      ...this.size(), series: tables.length ? series : [{}, {}], axes: axes(options), legend: { show: false },
      scales: { x: { time: false, ...log(options.logX) }, y: log(options.logY) },
      cursor: { drag: { x: true, y: true, uni: 30 } },
      hooks: { setCursor: [() => this.tell()], setSelect: [() => { this.zoomed = true; }] },
    }, data, this.host);
  }

  // Write the legend: one item for each line, with the value under the cursor or, without a cursor, the last value.
  list() {
    this.legend.replaceChildren(...this.items.map((item) => {
      const [line, swatch, name, value] = ["li", "i", "span", "b"].map((tag) => document.createElement(tag));
      swatch.style.borderTopColor = `var(${item.color})`;
      swatch.style.borderTopStyle = item.dash?.length ? "dashed" : "solid";
      name.textContent = item.name;
      item.value = value;
      line.append(swatch, name, value);
      return line;
    }));
    this.tell();
  }

  tell() {
    const { idxs, left } = this.plot?.cursor ?? {};
    for (const item of this.items ?? []) {
      const i = left >= 0 ? idxs?.[item.place] : null;
      item.value.textContent = measured(i == null ? item.last : this.plot.data[item.place][i]);
    }
  }
}
