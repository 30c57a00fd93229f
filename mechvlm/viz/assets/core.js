"use strict";
// Shared by all kinds of figure: decoding, colours, text, read-out. Text from data goes
// through textContent only.
const MechVLM = (() => {
  const kinds = {};
  const LARGE = 65536; // from here on numbers are sent rounded, and read so
  const SVG = "http://www.w3.org/2000/svg";
  const root = document.documentElement, pinned = root.dataset.theme;
  const screened = window.matchMedia("screen");
  const night = window.matchMedia("screen and (prefers-color-scheme: dark)");
  const wanted = () => (pinned ? pinned === "dark" && screened.matches : night.matches);
  const dressed = []; // what is painted anew when the theme changes
  let dark = wanted(), missing = null;

  function el(name, cls, text) {
    const made = document.createElement(name);
    if (cls) made.className = cls;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function svg(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function bytes(text) {
    const raw = atob(text), out = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
    return out;
  }

  // Floats of which the upper three bytes were sent.
  function decode(packed) {
    const raw = bytes(packed), view = new DataView(new ArrayBuffer(4));
    const out = new Float32Array(raw.length / 3);
    for (let i = 0; i < out.length; i++) {
      for (let k = 0; k < 3; k++) view.setUint8(k + 1, raw[3 * i + k]);
      out[i] = view.getFloat32(0, true);
    }
    return out;
  }

  // Runs `paint` now and whenever the page turns light or dark; paper is always light.
  function themed(paint) {
    dressed.push(paint);
    paint();
  }

  function turn(to) {
    if (to === dark) return;
    dark = to;
    missing = null;
    for (const paint of dressed) paint();
  }

  // One of the theme's colours by its name, such as "ink": no style reaches into a canvas.
  function colour(name) {
    return getComputedStyle(document.querySelector(".mv")).getPropertyValue("--" + name).trim();
  }

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

  function palette(scale) {
    const both = { light: scale.light.map(rgb), dark: scale.dark.map(rgb) };
    return (value) => {
      const stops = dark ? both.dark : both.light;
      if (!Number.isFinite(value)) return (missing = missing || rgb(colour("missing")));
      const share = (value - scale.low) / (scale.high - scale.low || 1);
      const at = Math.min(1, Math.max(0, share)) * (stops.length - 1);
      const i = Math.min(stops.length - 2, Math.floor(at)), rest = at - i;
      return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * rest));
    };
  }

  const series = (i) => "var(--series-" + (i % 6) + ")";

  function number(value) {
    if (!Number.isFinite(value)) return "no value";
    const short = Number(value.toPrecision(3)), size = Math.abs(value);
    const text = short && (Math.abs(short) < 1e-4 || size >= LARGE) ? value.toExponential(2).replace(/\.?0*e\+?/, "e")
      : size >= 1000 ? value.toFixed(0) : String(short);
    return text.replaceAll("-", "−");
  }

  function shortened(text, most) {
    const letters = Array.from(text);
    return letters.length <= most ? text : letters.slice(0, most - 1).join("") + "…";
  }

  function groupAt(axis, i) {
    const found = axis.groups.find((g) => g[1] <= i && i < g[2]);
    return found ? found[0] : "";
  }

  function bar(scale, units) {
    const box = el("div", "mv-bar"), ends = el("div", "mv-ends");
    const strip = el("div", "mv-strip");
    themed(() => {
      strip.style.background = "linear-gradient(to right," + (dark ? scale.dark : scale.light).join(",") + ")";
    });
    const marks = scale.low < 0 && scale.high > 0 ? [scale.low, 0, scale.high] : [scale.low, scale.high];
    for (const mark of marks) ends.append(el("span", "", number(mark)));
    box.append(strip, ends);
    if (units) box.append(el("div", "mv-units", units));
    return box;
  }

  // Names beside strokes of their colours, on as many lines as it takes.
  function legend(title, names, thick, dash, colour = series) {
    const box = el("div", "mv-legend");
    if (title) box.append(el("span", "mv-faint", title));
    names.forEach((name, i) => {
      const key = el("span"), swatch = svg("svg", { width: 18, height: 12, "aria-hidden": "true" });
      swatch.append(svg("line", { x1: 0, x2: 18, y1: 6, y2: 6, "stroke-width": thick,
        "stroke-dasharray": dash ? dash(i) : "", style: "stroke:" + colour(i) }));
      key.append(swatch, el("b", "", name));
      box.append(key);
    });
    return box;
  }

  // Parts of a read-out: plain strings, or {value}, {token} for emphasis.
  function say(output, parts) {
    output.replaceChildren();
    parts.filter((p) => p !== "").forEach((part, i) => {
      if (i) output.append(el("i", "", "·"));
      if (part.token !== undefined) output.append(el("code", "", part.token));
      else if (part.value !== undefined) output.append(el("b", "", part.value));
      else output.append(el("span", "", part));
    });
  }

  function ticks(low, high, most) {
    const rough = (high - low || 1) / most, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * ([1, 2, 5, 10].find((m) => m * power >= rough) || 10);
    const out = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step)
      out.push(Math.abs(v) < step / 1e6 ? 0 : v);
    return out;
  }

  function begin(figure) {
    const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const plot = figure.querySelector(".mv-plot"), output = figure.querySelector(".mv-read");
    const redraw = kinds[figure.dataset.kind](plot, spec, output, figure);
    figure.addEventListener("keydown", (event) => { // those belong to the browser
      if (event.altKey || event.ctrlKey || event.metaKey) event.stopPropagation();
    }, true);
    let width = 0;
    const check = () => {
      const now = Math.floor(plot.clientWidth);
      if (now > 0 && now !== width) redraw((width = now));
    };
    themed(() => {
      width = 0;
      check();
    });
    new ResizeObserver(() => requestAnimationFrame(check)).observe(plot);
  }

  function printed(on) {
    if (on) root.dataset.theme = "light";
    else if (pinned) root.dataset.theme = pinned;
    else delete root.dataset.theme;
    turn(on ? false : wanted());
  }

  function start() {
    for (const query of [night, screened]) query.addEventListener("change", () => turn(wanted()));
    window.addEventListener("beforeprint", () => printed(true));
    window.addEventListener("afterprint", () => printed(false));
    document.querySelectorAll("figure.mv").forEach(begin);
    root.dataset.live = ""; // a page over its still hides it from now on
  }

  return {
    kinds, el, svg, bytes, decode, palette, colour, series, themed, number, shortened, groupAt, bar, legend, say, ticks, start,
    get dark() { return dark; },
  };
})();
