"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const [LEFT, RIGHT, TOP, BOTTOM] = [58, 14, 12, 40];

  function make(name, attributes, parent, text) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  }

  function shape(name, attributes, parent, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }

  function button(parent, text, label, act) {
    const made = make("button", { type: "button", "aria-label": label, title: label }, parent, text);
    made.addEventListener("click", act);
    return made;
  }

  const short = (x) => String(Number(x.toPrecision(4)));

  // ------------------------------------------------------------------------------------------------------------- pictures

  function slider(strip) {
    const frames = [...strip.querySelectorAll("figure")];
    const words = frames.map((frame) => frame.querySelector("figcaption").textContent);
    const bar = make("div", { class: "controls" });
    let at = frames.length - 1;
    let timer = null;
    strip.removeAttribute("tabindex");
    strip.classList.add("live");
    strip.before(bar);
    const play = button(bar, "Play", `Play ${strip.getAttribute("aria-label")}`, () => (timer ? stop() : start()));
    button(bar, "‹", "One picture back", () => pick(Math.max(0, at - 1)));
    const label = strip.getAttribute("aria-label");
    const range = make("input", { type: "range", min: 0, max: frames.length - 1, step: 1, "aria-label": label }, bar);
    button(bar, "›", "One picture on", () => pick(Math.min(frames.length - 1, at + 1)));
    const said = make("output", {}, bar);
    range.addEventListener("input", () => pick(Number(range.value)));

    function show(index) {
      frames[at].classList.remove("shown");
      at = index;
      frames[at].classList.add("shown");
      range.value = at;
      range.setAttribute("aria-valuetext", words[at]);
      said.textContent = words[at];
    }
    function pick(index) {
      stop();
      show(index);
    }
    function start() {
      if (at === frames.length - 1) show(0);
      play.textContent = "Pause";
      timer = setInterval(() => (at === frames.length - 1 ? stop() : show(at + 1)), 250);
    }
    function stop() {
      clearInterval(timer);
      timer = null;
      play.textContent = "Play";
    }
    show(at);
  }

  // --------------------------------------------------------------------------------------------------------------- curves

  function ticks(low, high, most) {
    if (high <= low) return [low];
    const least = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= least * (1 - 1e-9));
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + 1e-9 * step; i += 1) found.push(i * step);
    return found;
  }

  function logTicks(low, high, most) {
    if (high < 10 * low) return ticks(low, high, most);
    const powers = [];
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p += 1) powers.push(p);
    const parts = high < 1000 * low ? [1, 2, 5] : [1];
    const inside = powers.flatMap((p) => parts.map((m) => m * 10 ** p)).filter((t) => low <= t && t <= high);
    return inside.filter((_, i) => i % Math.ceil(inside.length / (most + 2)) === 0);
  }

  class Curve {
    constructor(figure) {
      this.series = JSON.parse(figure.querySelector("script").textContent);
      this.plot = figure.querySelector(".plot");
      this.title = figure.dataset.title;
      const steps = this.series.flatMap((line) => [line.steps[0], line.steps[line.steps.length - 1]]);
      this.full = [Math.min(...steps), Math.max(...steps)];
      this.view = [...this.full];
      this.positive = this.series.some((line) => line.values.some((value) => value > 0));
      this.log = figure.dataset.log === "true";
      this.picked = null;
      this.width = 0;
      this.controls(figure);
      this.listen();
      const again = () => this.plot.clientWidth !== this.width && this.draw();
      new ResizeObserver(() => requestAnimationFrame(again)).observe(this.plot);
      this.draw();
    }

    controls(figure) {
      const bar = make("div", { class: "controls", role: "group", "aria-label": `Zoom of ${this.title}` });
      this.plot.before(bar);
      button(bar, "+", "Zoom in", () => this.zoom(0.5));
      button(bar, "−", "Zoom out", () => this.zoom(2));
      button(bar, "Reset", "Show all steps", () => this.look(this.full));
      const wrap = make("label", { class: "switch" }, bar);
      this.box = make("input", { type: "checkbox" }, wrap);
      wrap.append("log scale");
      this.box.checked = this.log;
      this.box.disabled = !this.positive;
      this.box.addEventListener("change", () => this.setLog(this.box.checked));
      this.said = make("output", { "aria-live": "polite" }, bar);
      const help = "Drag to zoom into a stretch; with the plot in focus the wheel and + − zoom, ← → move, 0 shows all, L is the log scale";
      this.plot.tabIndex = 0;
      this.plot.setAttribute("role", "group");
      this.plot.setAttribute("aria-label", `${this.title}. ${help}`);
      if (document.querySelector("figure.curve") === figure) this.plot.after(make("p", { class: "note help" }, null, `${help}.`));
    }

    listen() {
      const keys = {
        "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), "0": () => this.look(this.full),
        ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2), Home: () => this.look(this.full),
        l: () => this.positive && this.setLog(!this.log), L: () => this.positive && this.setLog(!this.log),
        Escape: () => { this.picked = null; this.draw(); },
      };
      this.plot.addEventListener("keydown", (event) => {
        if (event.target !== this.plot || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
        event.preventDefault();
        keys[event.key]();
      });
      this.plot.addEventListener("wheel", (event) => {
        if (document.activeElement !== this.plot && !event.ctrlKey) return;
        event.preventDefault();
        this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.step(event));
      }, { passive: false });
      this.plot.addEventListener("dblclick", () => this.look(this.full));
      this.plot.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        this.plot.setPointerCapture(event.pointerId);
        this.picked = { from: this.step(event), to: this.step(event), pixels: event.clientX };
      });
      this.plot.addEventListener("pointermove", (event) => {
        if (this.picked) {
          this.picked.to = this.step(event);
          this.draw();
        } else this.point(event);
      });
      this.plot.addEventListener("pointerup", (event) => {
        const picked = this.picked;
        this.picked = null;
        if (picked && Math.abs(event.clientX - picked.pixels) > 6) this.look([picked.from, picked.to].sort((a, b) => a - b));
        else this.draw();
      });
      this.plot.addEventListener("pointercancel", () => { this.picked = null; this.draw(); });
      this.plot.addEventListener("pointerleave", () => { if (!this.picked) this.draw(); });
    }

    setLog(on) {
      this.log = on;
      this.box.checked = on;
      this.draw();
    }

    look([low, high]) {
      const least = Math.max((this.full[1] - this.full[0]) / 1000, 2);
      const middle = (low + high) / 2;
      const half = Math.max(high - low, Math.min(least, this.full[1] - this.full[0])) / 2;
      const span = Math.min(2 * half, this.full[1] - this.full[0]);
      const start = Math.min(Math.max(middle - span / 2, this.full[0]), this.full[1] - span);
      this.view = [start, start + span];
      this.draw();
    }

    zoom(factor, around) {
      const centre = around === undefined ? (this.view[0] + this.view[1]) / 2 : around;
      this.look(this.view.map((end) => centre + (end - centre) * factor));
    }

    move(part) {
      const by = part * (this.view[1] - this.view[0]);
      this.look(this.view.map((end) => end + by));
    }

    step(event) {
      const place = event.clientX - this.plot.getBoundingClientRect().left - LEFT;
      const part = Math.min(1, Math.max(0, place / (this.plot.clientWidth - LEFT - RIGHT)));
      return this.view[0] + part * (this.view[1] - this.view[0]);
    }

    point(event) {
      const step = this.step(event);
      const words = this.series.map((line) => {
        let best = 0;
        line.steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(line.steps[best] - step)) best = i; });
        return [line.steps[best], `${line.name} ${short(line.values[best])}`];
      });
      this.draw(words[0][0]);
      this.said.textContent = `step ${short(words[0][0])} · ${words.map((pair) => pair[1]).join(" · ")}`;
    }

    range() {
      const seen = this.series.flatMap((line) => [line.values, line.mean].flatMap((column) =>
        column.filter((value, i) => line.steps[i] >= this.view[0] && line.steps[i] <= this.view[1] && (!this.log || value > 0))));
      if (!seen.length) return this.log ? [0.1, 1] : [0, 1];
      let [low, high] = [Infinity, -Infinity];
      for (const value of seen) { low = Math.min(low, value); high = Math.max(high, value); }
      return [low, high];
    }

    draw(cursor) {
      const width = Math.max(240, this.plot.clientWidth);
      const height = Math.round(Math.min(320, Math.max(220, width * 0.45)));
      const [low, high] = this.range();
      const scale = this.log ? Math.log10 : (x) => x;
      const [first, last] = this.view;
      const x = (s) => LEFT + (last > first ? (s - first) / (last - first) : 0.5) * (width - LEFT - RIGHT);
      const y = (v) => height - BOTTOM - (high > low ? (scale(v) - scale(low)) / (scale(high) - scale(low)) : 0.5) * (height - BOTTOM - TOP);
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", `${this.title}: steps ${short(first)} to ${short(last)}, values ${short(low)} to ${short(high)}`);
      this.axes(svg, width, height, x, y, low, high);
      const clip = `clip-${Curve.count += 1}`;
      shape("rect", { x: LEFT, y: 0, width: width - LEFT - RIGHT, height }, shape("clipPath", { id: clip }, svg));
      const lines = shape("g", { "clip-path": `url(#${clip})` }, svg);
      this.series.forEach((line, i) => {
        for (const [style, column] of [["raw", line.values], ["mean", line.mean]]) {
          const d = this.path(line.steps, column, x, y);
          if (d) shape("path", { d, class: `${style} s${i % 7}` }, lines);
        }
      });
      if (cursor !== undefined) shape("line", { x1: x(cursor), x2: x(cursor), y1: TOP, y2: height - BOTTOM, class: "cursor" }, lines);
      if (this.picked) {
        const [a, b] = [x(this.picked.from), x(this.picked.to)].sort((p, q) => p - q);
        shape("rect", { x: a, width: b - a, y: TOP, height: height - BOTTOM - TOP, class: "picked" }, lines);
      }
      this.plot.replaceChildren(svg);
      this.width = this.plot.clientWidth;
      const whole = first === this.full[0] && last === this.full[1];
      this.said.textContent = whole ? "" : `steps ${Math.round(first)} to ${Math.round(last)}`;
    }

    axes(svg, width, height, x, y, low, high) {
      const bottom = height - BOTTOM;
      for (const tick of (this.log ? logTicks : ticks)(low, high, 6)) {
        shape("line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }, svg);
        shape("text", { x: LEFT - 7, y: y(tick), dy: "0.32em", class: "end" }, svg, short(tick));
      }
      for (const tick of ticks(this.view[0], this.view[1], Math.max(2, Math.floor(width / 120)))) {
        shape("line", { x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 5, class: "axis" }, svg);
        shape("text", { x: x(tick), y: bottom + 19, class: "middle" }, svg, short(tick));
      }
      shape("line", { x1: LEFT, x2: width - RIGHT, y1: bottom, y2: bottom, class: "axis" }, svg);
      shape("text", { x: width - RIGHT, y: bottom + 35, class: "end faint" }, svg, "step");
    }

    path(steps, values, x, y) {
      const drawn = [];
      steps.forEach((step, i) => {
        const near = steps[Math.min(i + 1, steps.length - 1)] >= this.view[0] && steps[Math.max(i - 1, 0)] <= this.view[1];
        if (near && (!this.log || values[i] > 0)) drawn.push(`${x(step).toFixed(1)} ${y(values[i]).toFixed(1)}`);
      });
      return drawn.length ? `M${(drawn.length > 1 ? drawn : [drawn[0], drawn[0]]).join("L")}` : "";
    }
  }
  Curve.count = 0;

  // -------------------------------------------------------------------------------------------------------------- folding

  function unfolder(section) {
    const folds = () => [...section.querySelectorAll("details")];
    if (folds().length < 2) return;
    const bar = make("div", { class: "controls" });
    section.querySelector("h2").after(bar);
    button(bar, "Open all", `Open all details of ${section.querySelector("h2").textContent}`, () => folds().forEach((d) => { d.open = true; }));
    button(bar, "Close all", `Close all details of ${section.querySelector("h2").textContent}`, () => folds().forEach((d) => { d.open = false; }));
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const fold of closed) fold.open = true;
  });
  addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; });

  document.querySelectorAll(".strip").forEach(slider);
  document.querySelectorAll("figure.curve").forEach((figure) => new Curve(figure));
  document.querySelectorAll("section.folds").forEach(unfolder);
  document.documentElement.dataset.ready = "yes";
})();
