"""The page of a tuning Pod (``GET /``): how far it is and the loss, drawn on the server, brought up to date by itself.

It asks for nothing but itself and /progress of the same Pod, by relative addresses, so that it works through
``kubectl port-forward`` and through the API server's proxy alike. Everything that is shown is escaped; the policy
allows the one style and the one script below and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from html import escape
from typing import Any

from kaito_tuning.progress import curve
from kaito_tuning.progress.history import Curve

_STYLE = """
:root { color-scheme: light dark; --loss: #1f6feb; --eval: #bf5700; --faint: #8886; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 46rem; padding: 0 1rem; }
h1 { font-size: 1.25rem; } progress { width: 100%; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .5rem 1rem; }
dt { opacity: .7; font-size: .85rem; } dd { margin: 0; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg text { fill: currentColor; font-size: 12px; }
.left { text-anchor: end; } .below { text-anchor: middle; }
.frame { fill: none; stroke: var(--faint); } .grid { stroke: var(--faint); stroke-dasharray: 2 4; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.loss { stroke: var(--loss); } circle.loss { fill: var(--loss); }
.eval { stroke: var(--eval); } circle.eval { fill: var(--eval); }
.base { stroke: var(--eval); stroke-dasharray: 6 4; }
span.loss { color: var(--loss); } span.eval { color: var(--eval); }
#trouble { font-weight: 600; } #trouble:empty { display: none; }
"""
# A Pod that is gone, or is between two steps, is asked again: the page stays as it was.
_SCRIPT = """
const ask = async (path) => {
  const answer = await fetch(path, {cache: "no-store"});
  return answer.ok ? answer : null;
};
const refresh = async () => {
  try {
    const page = await ask("./");
    if (page) {
      const fresh = new DOMParser().parseFromString(await page.text(), "text/html");
      document.title = fresh.title;
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
    }
    const progress = await ask("progress");
    if (progress) {
      const {reason, message} = await progress.json();
      document.querySelector("#trouble").textContent = [reason, message].filter(Boolean).join(": ");
    }
    document.querySelector("#lost").hidden = true;
  } catch { document.querySelector("#lost").hidden = false; }
  setTimeout(refresh, 3000);
};
setTimeout(refresh, 3000);
"""

_FACTS = (
    ("loss", "Loss", "{:.4g}"),
    ("evalLoss", "Evaluation loss", "{:.4g}"),
    ("baseEvalLoss", "Base model's loss", "{:.4g}"),
    ("perplexity", "Perplexity", "{:.4g}"),
    ("meanTokenAccuracy", "Token accuracy", "{:.1%}"),
    ("learningRate", "Learning rate", "{:.3g}"),
    ("gradNorm", "Gradient norm", "{:.3g}"),
    ("tokens", "Tokens", "{:,.0f}"),
    ("tokensPerSecond", "Tokens a second", "{:,.0f}"),
)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# Also in the page itself: the step that goes on in this Pod serves it as a file.
_POLICY = (
    f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'"
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def render(progress: Mapping[str, Any], curves: Mapping[str, Curve]) -> str:
    """The page of one state: ``progress`` as /progress answers it, ``curves`` as its history."""
    phase, percent = escape(str(progress["phase"])), int(progress["progressPercentage"])
    metrics = progress["metrics"]
    facts = [("Step", f"{progress['currentStep']} of {progress['totalSteps']}" if progress["totalSteps"] else "")]
    facts.append(("Epoch", f"{progress['epoch']:g} of {progress['epochs']:g}" if progress["epochs"] else ""))
    facts.append(("Time left", duration(progress["estimatedRemainingSeconds"])))
    facts += [(title, form.format(metrics[name])) for name, title, form in _FACTS if name in metrics]
    if "peakGPUMemoryBytes" in metrics:
        facts.append(("Peak GPU memory", f"{metrics['peakGPUMemoryBytes'] / 2**30:.1f} GiB"))
    if progress["checkpointStep"]:
        facts.append(("Checkpoint", f"step {progress['checkpointStep']}"))
    if progress["restarts"]:
        facts.append(("Restarts", str(progress["restarts"])))
    reason = escape(": ".join(part for part in (progress["reason"], progress["message"]) if part))
    listed = "".join(f"<div><dt>{title}</dt><dd>{escape(value)}</dd></div>" for title, value in facts if value)
    drawing = curve.svg(curves, total=int(progress["totalSteps"]), base=metrics.get("baseEvalLoss"))
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{phase}, {percent} %</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body>'
        f'<main><h1>{phase}</h1><p id="trouble">{reason}</p>'
        f'<progress max="100" value="{percent}">{percent} %</progress>'
        f"<dl>{listed}</dl>{drawing}{_legend(curves, metrics)}"
        f"<p><small>As of {escape(str(progress['lastUpdatedTime'])) or 'the start'}</small></p></main>"
        '<p id="lost" hidden>This Pod does not answer any more; the Workspace\'s status says how it ended.</p>'
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def duration(seconds: float | None) -> str:
    """As people say it: ``45 s``, ``12 min``, ``3 h 20 min``; "" for None."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{int(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _legend(curves: Mapping[str, Curve], metrics: Mapping[str, float]) -> str:
    parts = ['<span class="loss">training loss</span>'] if "loss" in curves else []
    if "evalLoss" in curves:
        parts.append('<span class="eval">evaluation loss</span>')
    if "baseEvalLoss" in metrics:
        parts.append('<span class="eval">dashed: base model</span>')
    return f"<p>{', '.join(parts)}</p>" if parts else ""
