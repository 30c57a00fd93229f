// A map over its picture: one large view, and a small one for each layer to choose from.
MechVLM.kinds.overlay = (plot, spec, output, figure) => {
  const { el, svg, number, say } = MechVLM;
  const values = MechVLM.decode(spec.values), colour = MechVLM.palette(spec.scale);
  const [, rows, cols, x0, y0, x1, y1] = spec.grid, [width, height] = spec.size;
  const n = spec.layers.labels.length, size = rows * cols;
  const most = Math.max(-spec.scale.low, spec.scale.high) || 1;
  figure.querySelector("figcaption").after(MechVLM.bar(spec.scale, spec.units));

  const rasters = spec.layers.labels.map(() => Object.assign(el("canvas"), { width: cols, height: rows }));
  MechVLM.themed(() => rasters.forEach((raster, layer) => {
    const pixels = new ImageData(cols, rows);
    for (let k = 0; k < size; k++) {
      const v = values[layer * size + k];
      const share = Number.isFinite(v) ? 0.9 * Math.min(1, Math.abs(v) / most) ** 0.7 : 0;
      pixels.data.set([...colour(v), Math.round(255 * share)], 4 * k);
    }
    raster.getContext("2d").putImageData(pixels, 0, 0);
  }));

  function strongestLayer() {
    let best = 0;
    values.forEach((v, i) => {
      if (Math.abs(v) > Math.abs(values[best]) || !Number.isFinite(values[best])) best = i;
    });
    return Math.floor(best / size);
  }

  let layer = strongestLayer(), big = null;
  const stage = el("div", "mv-stage"), strip = el("div", "mv-thumbs");
  const slide = el("label", "mv-slide"), range = el("input"), name = el("span");
  Object.assign(range, { type: "range", min: 0, max: n - 1, step: 1, value: layer });
  slide.append(name, range);
  const photo = new Image();

  function paint(canvas, which, plainly) {
    const pen = canvas.getContext("2d"), sx = canvas.width / width, sy = canvas.height / height;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.filter = plainly ? "none" : "saturate(0)";
    pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
    pen.filter = "none";
    if (!plainly) {
      pen.fillStyle = MechVLM.dark ? "rgba(21,23,27,0.55)" : "rgba(255,255,255,0.35)";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(rasters[which], x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy);
    }
    for (const [ink, thick] of [["#fff", 3], ["#20242b", 1.4]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = (thick * canvas.width) / Math.max(1, canvas.clientWidth || canvas.width);
      pen.lineCap = "square";
      pen.beginPath();
      for (const [a, b, c, d] of spec.outline) {
        pen.moveTo(a * sx, b * sy);
        pen.lineTo(c * sx, d * sy);
      }
      pen.stroke();
    }
  }

  function redraw(room) {
    const sharp = window.devicePixelRatio || 1;
    const wide = Math.min(room < 640 ? room : room * 0.46, 420, (440 * width) / height);
    big = el("canvas", "mv-big");
    Object.assign(big, { width: wide * sharp, height: (wide * sharp * height) / width });
    big.style.width = wide + "px";
    slide.style.width = wide + "px";
    const left = el("div", "mv-left");
    left.append(big, slide);
    const small = n > 16 ? 68 : 96;
    strip.replaceChildren(...spec.layers.labels.map((label, i) => {
      const thumb = el("button", "mv-thumb"), canvas = el("canvas");
      thumb.type = "button";
      Object.assign(canvas, { width: small * sharp, height: (small * sharp * height) / width });
      canvas.style.width = small + "px";
      thumb.append(canvas, el("span", "", label));
      thumb.setAttribute("aria-label", "layer " + label);
      thumb.addEventListener("click", () => choose(i));
      return thumb;
    }));
    const plainly = el("button", "mv-thumb"), bare = el("canvas");
    plainly.type = "button";
    Object.assign(bare, { width: small * sharp, height: (small * sharp * height) / width });
    bare.style.width = small + "px";
    plainly.append(bare, el("span", "", "image"));
    plainly.addEventListener("click", () => {
      press(plainly);
      paint(big, layer, true);
    });
    const side = el("div", "mv-side");
    side.append(el("div", "mv-faint", "layer"), strip);
    stage.replaceChildren(left, side);
    plot.replaceChildren(stage);
    strip.querySelectorAll("canvas").forEach((canvas, i) => paint(canvas, i, false));
    paint(bare, 0, true);
    strip.prepend(plainly);
    big.addEventListener("pointermove", read);
    big.addEventListener("pointerdown", read);
    big.addEventListener("pointerleave", rest);
    choose(layer);
  }

  function press(button) {
    for (const one of strip.children) one.setAttribute("aria-pressed", one === button);
  }

  function choose(i) {
    layer = i;
    range.value = i;
    name.textContent = "layer " + spec.layers.labels[i];
    press(strip.children[i + 1]);
    paint(big, i, false);
    rest();
  }

  function rest() {
    let best = layer * size;
    for (let k = layer * size; k < (layer + 1) * size; k++)
      if (Math.abs(values[k]) > Math.abs(values[best]) || !Number.isFinite(values[best])) best = k;
    tell(best - layer * size, "strongest");
  }

  function tell(k, lead) {
    const parts = [{ value: number(values[layer * size + k]) }, "layer " + spec.layers.labels[layer],
      "image row " + Math.floor(k / cols), "col " + (k % cols), "position " + (spec.grid[0] + k)];
    say(output, lead ? [lead, ...parts] : parts);
  }

  function read(event) {
    const box = big.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    const col = Math.floor(((x - x0) / (x1 - x0)) * cols), row = Math.floor(((y - y0) / (y1 - y0)) * rows);
    if (col < 0 || row < 0 || col >= cols || row >= rows) return say(output, ["outside what the model saw"]);
    tell(row * cols + col);
  }

  range.addEventListener("input", () => choose(Number(range.value)));
  photo.addEventListener("load", () => big && redraw(plot.clientWidth));
  photo.src = spec.picture;
  plot.setAttribute("role", "group");
  plot.removeAttribute("tabindex");
  return redraw;
};
