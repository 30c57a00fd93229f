// A map over its picture: one large view, a slider over the layers, and a small view of each.
MechVLM.kinds.overlay = (plot, spec, output, figure) => {
  const { el, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values), colour = MechVLM.palette(spec.scale);
  const [start, rows, cols, x0, y0, x1, y1] = spec.grid, [width, height] = spec.size;
  const n = spec.layers.length, size = rows * cols;
  const named = (i) => (spec.layers[i] ? "layer " + spec.layers[i] : "map");
  const most = Math.max(-spec.scale.low, spec.scale.high) || 1;
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));

  const stronger = (i, than) => Number.isFinite(values[i]) && !(Math.abs(values[i]) <= Math.abs(values[than]));
  const strongest = (from, to) => {
    let found = from;
    for (let i = from; i < to; i++) if (stronger(i, found)) found = i;
    return found;
  };
  let layer = Math.floor(strongest(0, values.length) / size), cell = -1, bare = false;
  let ink = "", paper = "", faint = "", backdrop = null;

  const big = el("canvas", "mv-big"), frame = el("div", "mv-frame"), marker = el("div", "mv-cell");
  frame.append(big, marker);
  frame.tabIndex = 0;
  frame.setAttribute("role", "img");
  const slide = el("label", "mv-slide"), range = el("input"), name = el("span");
  Object.assign(range, { type: "range", min: 0, max: n - 1, step: 1, value: layer });
  slide.append(name, range);
  const left = el("div", "mv-left"), side = el("div", "mv-side"), stage = el("div", "mv-stage");
  const strip = el("div", "mv-thumbs");
  left.append(frame, slide);
  if (n === 1) slide.hidden = true;
  side.append(el("div", "mv-faint", spec.layers[0] ? "layer" : ""), strip);
  stage.append(left, side);
  const thumbs = [thumb("image", "image"), ...spec.layers.map((label, i) => thumb(label || "map", named(i)))];
  thumbs[0].addEventListener("click", () => { bare = true; show(); });
  thumbs.slice(1).forEach((one, i) => one.addEventListener("click", () => choose(i)));
  strip.append(...thumbs);
  const photo = new Image();

  function thumb(text, said) {
    const made = el("button", "mv-thumb");
    made.type = "button";
    made.setAttribute("aria-label", said);
    made.append(el("canvas"), el("span", "", text));
    return made;
  }

  function sized(canvas, wide) {
    const sharp = window.devicePixelRatio || 1, high = (wide * height) / width;
    Object.assign(canvas, { width: Math.round(wide * sharp), height: Math.round(high * sharp) });
    Object.assign(canvas.style, { width: wide + "px", height: high + "px" });
  }

  // The picture, grey and near the paper, so that colours over it keep their meaning.
  function veiled() {
    backdrop = Object.assign(el("canvas"), { width: big.width, height: big.height });
    const pen = backdrop.getContext("2d");
    pen.filter = "saturate(0)";
    pen.drawImage(photo, 0, 0, big.width, big.height);
    pen.filter = "none";
    pen.globalAlpha = spec.veil;
    pen.fillStyle = paper;
    pen.fillRect(0, 0, big.width, big.height);
  }

  function raster(which) {
    const pixels = new ImageData(cols, rows), made = Object.assign(el("canvas"), { width: cols, height: rows });
    for (let k = 0; k < size; k++) {
      const v = values[which * size + k];
      const share = Number.isFinite(v) ? 0.9 * Math.min(1, Math.abs(v) / most) ** 0.7 : 0;
      pixels.data.set([...colour(v), Math.round(255 * share)], 4 * k);
    }
    made.getContext("2d").putImageData(pixels, 0, 0);
    return made;
  }

  function paint(canvas, which) { // -1 is the picture alone
    const pen = canvas.getContext("2d"), sx = canvas.width / width, sy = canvas.height / height;
    pen.drawImage(which < 0 ? photo : backdrop, 0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = false;
    if (which >= 0) pen.drawImage(raster(which), x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
    pen.imageSmoothingEnabled = true;
    if (which >= 0) seen(pen, sx, sy);
    for (const [hue, thick] of [[paper, 3], [ink, 1.4]]) {
      Object.assign(pen, { strokeStyle: hue, lineWidth: thick * (canvas.width / parseFloat(canvas.style.width)), lineCap: "square" });
      pen.beginPath();
      for (const [a, b, c, d] of spec.outline) {
        pen.moveTo(a * sx, b * sy);
        pen.lineTo(c * sx, d * sy);
      }
      pen.stroke();
    }
  }

  // A dashed line around what the model saw, where that is not the whole picture.
  function seen(pen, sx, sy) {
    if (x0 <= 0 && y0 <= 0 && x1 >= width && y1 >= height) return;
    Object.assign(pen, { strokeStyle: faint, lineWidth: window.devicePixelRatio || 1 });
    pen.setLineDash([4, 3]);
    pen.strokeRect(x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
    pen.setLineDash([]);
  }

  function redraw(room) {
    const wide = Math.floor(Math.min(room < 640 ? room : room * 0.46, 420, (440 * width) / height));
    const tight = room < 640, small = tight ? (n > 8 ? 46 : 72) : n > 16 ? 68 : 96;
    [ink, paper, faint] = ["ink", "paper", "faint"].map(MechVLM.colour);
    strip.classList.toggle("mv-tight", tight);
    frame.style.width = slide.style.width = wide + "px";
    if (stage.parentNode !== plot) plot.replaceChildren(stage);
    sized(big, wide);
    veiled();
    thumbs.forEach((one, i) => {
      sized(one.firstChild, small);
      paint(one.firstChild, i - 1);
    });
    show();
  }

  function choose(i) {
    [layer, bare] = [i, false];
    show();
  }

  function show() {
    const label = named(layer);
    range.value = layer;
    range.setAttribute("aria-valuetext", label);
    name.textContent = label;
    frame.setAttribute("aria-label", label + " over the image; arrow keys read its cells");
    thumbs.forEach((one, i) => one.setAttribute("aria-pressed", i === (bare ? 0 : layer + 1)));
    paint(big, bare ? -1 : layer);
    mark(cell);
  }

  function mark(k) {
    cell = k;
    marker.hidden = k < 0;
    const at = k < 0 ? strongest(layer * size, (layer + 1) * size) - layer * size : k;
    const [row, col] = [Math.floor(at / cols), at % cols];
    const sx = parseFloat(big.style.width) / width, sy = parseFloat(big.style.height) / height;
    const [wide, high] = [((x1 - x0) / cols) * sx, ((y1 - y0) / rows) * sy];
    Object.assign(marker.style, {
      left: x0 * sx + col * wide + "px", top: y0 * sy + row * high + "px", width: wide + "px", height: high + "px",
    });
    const parts = [{ value: number(values[layer * size + at]) }, named(layer),
      "image row " + row, "col " + col, "position " + (start + at)];
    say(output, k < 0 ? ["strongest", ...parts] : parts);
  }

  function point(event) {
    const box = big.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    const col = Math.floor(((x - x0) / (x1 - x0)) * cols), row = Math.floor(((y - y0) / (y1 - y0)) * rows);
    if (col >= 0 && row >= 0 && col < cols && row < rows) return mark(row * cols + col);
    mark(-1);
    say(output, [spec.grids > 1 ? "outside this view of the image" : "outside what the model saw"]);
  }

  frame.addEventListener("pointermove", point);
  frame.addEventListener("pointerdown", point);
  frame.addEventListener("pointerleave", () => mark(-1));
  frame.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = cell < 0 ? strongest(layer * size, (layer + 1) * size) - layer * size : cell;
    const row = Math.min(rows - 1, Math.max(0, Math.floor(from / cols) + move[0]));
    mark(row * cols + Math.min(cols - 1, Math.max(0, (from % cols) + move[1])));
  });
  range.addEventListener("input", () => choose(Number(range.value)));
  photo.addEventListener("load", () => plot.clientWidth && redraw(Math.floor(plot.clientWidth)));
  photo.src = spec.picture;
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");
  return redraw;
};
