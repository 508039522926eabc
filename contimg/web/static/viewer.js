// Shows an image's pixels: zoom, pan, stretch, and position and flux under the pointer.
const MOST = 1000; // values on a side that are asked for at once

function inferno(t) { // polynomial through matplotlib's inferno (public domain fit by M. Zucker)
  const c = [[0.00022, 0.00165, -0.0195], [0.1065, 0.564, 3.9327], [11.6025, -3.9729, -15.9424],
             [-41.704, 17.4364, 44.3541], [77.1629, -33.4024, -81.8073], [-71.319, 32.6261, 73.2095], [25.1311, -12.2427, -23.0703]];
  return [0, 1, 2].map((k) => 255 * Math.min(1, Math.max(0, c.reduceRight((sum, row) => sum * t + row[k], 0))));
}
const COLOURS = Array.from({ length: 256 }, (_, i) => inferno(i / 255));
const STRETCH = { linear: (t) => t, asinh: (t) => Math.asinh(10 * t) / Math.asinh(10), "square root": Math.sqrt };

class Viewer {
  constructor(root) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.controls = Object.fromEntries([...root.querySelectorAll("[name]")].map((one) => [one.name, one]));
    this.size = Number(root.dataset.size);
    this.tiles = [];
    this.whole();
    const { image, stretch, low, high } = this.controls;
    image.addEventListener("change", () => this.load(image.value));
    for (const one of [stretch, low, high]) one.addEventListener("input", () => this.draw());
    this.controls.in.addEventListener("click", () => this.zoom(2));
    this.controls.out.addEventListener("click", () => this.zoom(0.5));
    this.controls.whole.addEventListener("click", () => { this.whole(); this.draw(); });
    this.canvas.addEventListener("wheel", (e) => { e.preventDefault(); this.zoom(e.deltaY < 0 ? 1.25 : 0.8, ...this.under(e)); }, { passive: false });
    this.canvas.addEventListener("pointerdown", (e) => { this.grip = this.under(e); this.canvas.setPointerCapture(e.pointerId); });
    this.canvas.addEventListener("pointerup", () => { this.grip = null; this.refine(); });
    this.canvas.addEventListener("pointermove", (e) => this.move(e));
    this.canvas.addEventListener("keydown", (e) => this.key(e));
    this.load(image.value);
  }
  whole() { this.scale = this.canvas.width / this.size; this.x = this.y = this.size / 2; } // canvas units a pixel; the centre
  async load(id) {
    this.id = id;
    this.tiles = [await this.fetch(0, 0, this.size, this.size)];
    const rms = this.tiles[0].wcs.RMS, beam = this.tiles[0].wcs.BUNIT !== "Jy/beam";
    this.controls.low.value = beam ? 0 : (-2e3 * rms).toPrecision(3);
    this.controls.high.value = beam ? 1000 : (25e3 * rms).toPrecision(3);
    this.draw();
    this.refine();
    this.root.dataset.ready = id;
  }
  async fetch(x0, y0, width, height) {
    const step = Math.ceil(Math.max(width, height) / MOST);
    const answer = await fetch(`${document.documentElement.dataset.root}/api/images/${this.id}/pixels?x0=${x0}&y0=${y0}&width=${width}&height=${height}&step=${step}`);
    if (!answer.ok) { const { detail } = await answer.json(); this.say(typeof detail === "string" ? detail : JSON.stringify(detail)); throw new Error(answer.status); }
    return { ...JSON.parse(answer.headers.get("x-image")), values: new Float32Array(await answer.arrayBuffer()) };
  }
  async refine() { // the part in view, in full, when there is more to see
    const half = this.canvas.width / this.scale / 2, n = Math.ceil(2 * half) + 2;
    if (n >= this.size || this.scale * this.tiles[0].step < 1) { this.tiles.length = 1; return this.draw(); }
    const [x0, y0] = [this.x - half, this.y - half].map((v) => Math.max(0, Math.min(this.size - 1, Math.floor(v))));
    const asked = this.asked = Symbol("latest");
    const tile = await this.fetch(x0, y0, n, n);
    if (asked === this.asked) { this.tiles = [this.tiles[0], tile]; this.draw(); }
  }
  zoom(factor, x = this.x, y = this.y) {
    const scale = Math.min(24, Math.max(this.canvas.width / this.size, this.scale * factor)), kept = this.scale / scale;
    [this.x, this.y, this.scale] = [x + (this.x - x) * kept, y + (this.y - y) * kept, scale];
    this.draw();
    clearTimeout(this.later);
    this.later = setTimeout(() => this.refine(), 150);
  }
  key(event) {
    const step = this.canvas.width / this.scale / 10;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves) { this.x += moves[event.key][0]; this.y += moves[event.key][1]; this.draw(); this.refine(); this.read(this.x, this.y); }
    else if (event.key === "+" || event.key === "=") this.zoom(2);
    else if (event.key === "-") this.zoom(0.5);
    else return;
    event.preventDefault();
  }
  under(event) { // pixel (from 0) under the pointer; y grows to the north, up
    const box = this.canvas.getBoundingClientRect(), unit = this.canvas.width / box.width;
    return [this.x + ((event.clientX - box.left) * unit - this.canvas.width / 2) / this.scale,
            this.y - ((event.clientY - box.top) * unit - this.canvas.height / 2) / this.scale];
  }
  move(event) {
    const [x, y] = this.under(event);
    if (this.grip) { this.x -= x - this.grip[0]; this.y -= y - this.grip[1]; this.draw(); } else this.read(x, y);
  }
  value(x, y) {
    for (const tile of this.tiles.toReversed()) {
      const i = Math.floor((x - tile.x0) / tile.step), j = Math.floor((y - tile.y0) / tile.step);
      if (i >= 0 && j >= 0 && i < tile.width && j < tile.height) return [tile.values[j * tile.width + i], tile.step];
    }
    return [NaN, 1];
  }
  read(x, y) {
    const { wcs } = this.tiles[0], rad = Math.PI / 180;
    const l = (Math.floor(x) + 1 - wcs.CRPIX1) * wcs.CDELT1 * rad, m = (Math.floor(y) + 1 - wcs.CRPIX2) * wcs.CDELT2 * rad;
    const n = Math.sqrt(1 - l * l - m * m), dec0 = wcs.CRVAL2 * rad; // SIN projection: FITS paper II, 5.1.5
    const dec = Math.asin(m * Math.cos(dec0) + n * Math.sin(dec0)) / rad;
    const ra = (wcs.CRVAL1 + Math.atan2(l, n * Math.cos(dec0) - m * Math.sin(dec0)) / rad + 360) % 360;
    const sexagesimal = (v, digits) => { const s = (Math.abs(v) * 3600).toFixed(digits);
      return [Math.floor(s / 3600), Math.floor((s % 3600) / 60)].map((k) => String(k).padStart(2, "0")).join(":") + ":" + (s % 60).toFixed(digits).padStart(digits + 3, "0"); };
    const [flux, step] = this.value(x, y);
    const text = wcs.BUNIT !== "Jy/beam" ? flux.toFixed(3) : `${(flux * 1e3).toFixed(2)} mJy/beam`;
    this.say(`RA ${sexagesimal(ra / 15, 2)}  Dec ${dec < 0 ? "−" : "+"}${sexagesimal(dec, 1)}  (${ra.toFixed(5)}, ${dec.toFixed(5)})  ` +
      (Number.isNaN(flux) ? "blank" : text + (step > 1 ? ` (largest of ${step} × ${step} pixels)` : "")));
  }
  say(text) { this.root.querySelector(".readout").textContent = text; }
  draw() {
    const { width, height } = this.canvas, context = this.canvas.getContext("2d"), picture = context.createImageData(width, height);
    const low = this.controls.low.value / 1e3, span = this.controls.high.value / 1e3 - low, stretch = STRETCH[this.controls.stretch.value];
    for (let py = 0, p = 0; py < height; py++) {
      const y = this.y - (py + 0.5 - height / 2) / this.scale;
      for (let px = 0; px < width; px++, p += 4) {
        const [value] = this.value(this.x + (px + 0.5 - width / 2) / this.scale, y);
        const colour = Number.isNaN(value) ? [128, 128, 128] : COLOURS[Math.round(255 * stretch(Math.min(1, Math.max(0, (value - low) / span))))];
        picture.data.set(colour, p);
        picture.data[p + 3] = Number.isNaN(value) ? 60 : 255;
      }
    }
    context.putImageData(picture, 0, 0);
  }
}
window.makeViewers = (where) => where.querySelectorAll(".viewer").forEach((root) => (root.viewer = new Viewer(root)));
window.makeViewers(document);
