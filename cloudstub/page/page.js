// One page: gateways, what their services report, live curves, events. Plain JavaScript on the documented API.
"use strict";

const API = "/api/v1";
const SPAN_US = 120e6; // how far back the curves reach
const REFRESH_MS = 3000;
const QUALITY = { 64: "uncertain", 128: "bad", 129: "no connection", 130: "device error" };

const byId = (id) => document.getElementById(id);
let selected = null;
let stream = null;
let curves = new Map();

async function get(path) {
  const response = await fetch(API + path);
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response.json();
}

function make(name, className = "", text = "") {
  const element = document.createElement(name);
  element.className = className;
  element.textContent = text;
  return element;
}

function ago(us) {
  const s = Math.max(0, Date.now() / 1000 - us / 1e6);
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

async function refresh() {
  try {
    const [gateways, health] = await Promise.all([get("/gateways"), get("/health")]);
    const count = health.counters;
    byId("health").textContent =
      `${(count.samples || 0).toLocaleString()} samples · ${count.buffer_rows || 0} waiting` +
      (health.ok ? "" : " · " + health.trouble.join("; "));
    byId("empty").hidden = gateways.length > 0;
    byId("gateways").replaceChildren(...gateways.map(choice));
    if (!selected && gateways.length) select(location.hash.slice(1) || gateways[0].id);
    if (selected) await Promise.all([showEvents(selected), addNewTags(selected)]);
  } catch (error) {
    byId("health").textContent = `no answer from the cloud (${error.message})`;
  }
}

function choice(gateway) {
  const button = make("button");
  button.append(make("span", "dot" + (gateway.online ? " ok" : "")), gateway.id);
  button.setAttribute("aria-current", gateway.id === selected);
  button.onclick = () => select(gateway.id);
  return button;
}

function select(id) {
  selected = id;
  location.hash = id;
  curves = new Map();
  byId("tags").replaceChildren();
  byId("pong").textContent = "";
  if (stream) stream.close();
  stream = new EventSource(`${API}/gateways/${encodeURIComponent(id)}/live`);
  stream.addEventListener("gateway", (event) => showGateway(JSON.parse(event.data)));
  stream.addEventListener("samples", (event) => JSON.parse(event.data).forEach(addSample));
  addNewTags(id).catch(() => {});
  showEvents(id).catch(() => {});
}

function showGateway(gateway) {
  if (!gateway || gateway.id !== selected) return;
  byId("gateway").hidden = false;
  byId("name").textContent = gateway.id;
  byId("presence").textContent = gateway.online ? "online" : "offline";
  byId("presence").classList.toggle("on", gateway.online);
  byId("since").textContent =
    `for ${ago(gateway.since_us)}` + (gateway.version ? ` · version ${gateway.version}` : "");
  byId("services").replaceChildren(
    ...Object.entries(gateway.observed).map(([name, observed]) => {
      const card = make("div", "card");
      card.append(make("span", "dot " + observed.state), make("b", "", name), make("p", "", observed.summary));
      return card;
    }),
  );
}

async function addNewTags(id) {
  const tags = await get(`/gateways/${encodeURIComponent(id)}/tags`);
  for (const tag of tags) {
    if (curves.has(tag.tag) || id !== selected) continue;
    const curve = new Curve(tag);
    curves.set(tag.tag, curve);
    byId("tags").append(curve.element);
    const from = Math.round(Date.now() * 1000 - SPAN_US);
    const points = await get(
      `/gateways/${encodeURIComponent(id)}/series?tag=${encodeURIComponent(tag.tag)}&from=${from}&limit=2000`);
    curve.add(points.length ? points : tag.last ? [tag.last] : []);
  }
}

function addSample(sample) {
  curves.get(sample.tag)?.add([sample]);
}

class Curve {
  constructor(tag) {
    this.points = [];
    this.element = make("div", "card tag");
    const row = make("div", "row");
    this.value = make("span", "value");
    row.append(make("b", "", tag.tag.replace(/^plc-/, "").replace("/", " · ")), this.value);
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("viewBox", "0 0 100 100");
    this.svg.setAttribute("preserveAspectRatio", "none");
    [this.area, this.line] = ["area", "line"].map((name) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("class", name);
      this.svg.append(path);
      return path;
    });
    this.scale = make("div", "scale");
    this.element.append(row, this.svg, this.scale);
  }

  add(points) {
    const known = this.points.length ? this.points[this.points.length - 1].time_us : -Infinity;
    this.points.push(...points.filter((point) => point.time_us > known));
    const end = Date.now() * 1000 - SPAN_US;
    const first = this.points.findIndex((point) => point.time_us >= end);
    this.points.splice(0, first < 0 ? Math.max(0, this.points.length - 1) : Math.max(0, first - 1));
    const last = this.points[this.points.length - 1];
    if (last) {
      this.element.classList.toggle("bad", last.quality >= 128);
      this.value.textContent = last.quality >= 128 ? QUALITY[last.quality] || "no value" : show(last.value);
    }
  }

  draw() {
    const end = Date.now() * 1000;
    const points = this.points
      .map((p) => ({ x: 100 + (100 * (p.time_us - end)) / SPAN_US, y: Number(p.value), gap: p.quality >= 128 }))
      .filter((p) => p.gap || Number.isFinite(p.y));
    const values = points.filter((p) => !p.gap).map((p) => p.y);
    const text = typeof this.points[this.points.length - 1]?.value === "string";
    this.svg.style.display = values.length && !text ? "" : "none";
    if (!values.length || text) {
      this.scale.replaceChildren();
      return;
    }
    const low = Math.min(...values), high = Math.max(...values), span = high - low || 1;
    const y = (value) => (high === low ? 50 : 94 - (88 * (value - low)) / span);
    let line = "", area = "", start = null, before = null;
    const close = () => { if (start) area += `L${before.x} 100L${start.x} 100Z`; start = null; };
    for (const point of points) {
      if (point.gap) { close(); before = null; continue; }
      const at = `${point.x.toFixed(2)} ${y(point.y).toFixed(2)}`;
      line += (before ? "L" : "M") + at;
      area += (before ? "L" : "M") + at;
      start ||= point;
      before = point;
    }
    if (before) { // the last value holds until the next one
      line += `L100 ${y(before.y).toFixed(2)}`;
      area += `L100 ${y(before.y).toFixed(2)}`;
      before = { x: 100, y: before.y };
      close();
    }
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", area);
    this.scale.replaceChildren(make("span", "", `${show(low)} … ${show(high)}`), make("span", "", "2 min"));
  }
}

function show(value) {
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString() : Number(value.toPrecision(6)).toLocaleString(undefined,
    { maximumFractionDigits: 6 });
}

async function showEvents(id) {
  const events = await get(`/gateways/${encodeURIComponent(id)}/events?limit=30`);
  if (id !== selected) return;
  byId("events").replaceChildren(
    ...events.map((event) => {
      const row = make("tr");
      const what = make("td");
      what.append(make("span", "dot " + (event.severity === "info" ? "" : event.severity)),
        `${event.service}: ${event.name}`);
      const data = Object.entries(event.data).map(([key, value]) => `${key} ${value}`).join(", ");
      row.append(make("td", "", new Date(event.time_us / 1000).toLocaleString()), what, make("td", "quiet", data));
      return row;
    }),
  );
}

byId("ping").onclick = async () => {
  byId("ping").disabled = true;
  byId("pong").textContent = "…";
  try {
    const response = await fetch(`${API}/gateways/${encodeURIComponent(selected)}/ping`, { method: "POST" });
    const answer = await response.json();
    byId("pong").textContent = response.ok ? `there and back in ${answer.ms} ms` : answer.detail;
  } catch (error) {
    byId("pong").textContent = error.message;
  }
  byId("ping").disabled = false;
};

refresh();
setInterval(refresh, REFRESH_MS);
setInterval(() => curves.forEach((curve) => curve.draw()), 500);
