"""The status page at /: one self-contained document that reads /status every second."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>streamcl</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 44rem; padding: 0 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.5rem; }
dt { opacity: .7; } dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
</style></head>
<body><h1>streamcl</h1><p id="state" role="status">connecting</p><dl id="fields"></dl>
<p><a href="/metrics">metrics</a> &middot; <a href="/status">status as JSON</a></p>
<script>
const text = (v) => v === null ? "\\u2013" : typeof v === "object"
  ? Object.entries(v).map(([k, w]) => k + " " + text(w)).join(", ") || "\\u2013"
  : typeof v === "number" && !Number.isInteger(v) ? v.toPrecision(4) : String(v);
async function poll() {
  try {
    const status = await (await fetch("/status")).json();
    document.getElementById("state").textContent = status.state + (status.task ? ": " + status.task : "");
    const rows = Object.entries(status).filter(([k]) => !["state", "task"].includes(k)).flatMap(([k, v]) => {
      const dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = k.replaceAll("_", " "); dd.textContent = text(v); return [dt, dd];
    });
    document.getElementById("fields").replaceChildren(...rows);
  } catch (e) { document.getElementById("state").textContent = "no answer from the daemon"; }
  setTimeout(poll, 1000);
}
poll();
</script></body></html>
"""
