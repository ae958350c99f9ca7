"""What a claim says of a refusal: the cloud's words and, where another instance type would help, which ones would do.

Which types those are is known to whoever made the claim and written in an annotation; without it only the refused type
is named. The cloud's text is shortened before the advice is.
"""

from __future__ import annotations

import re

from kaito_hooks.api import labels
from kaito_hooks.api.claim import Claim
from kaito_hooks.provisioner.errors import HELPED_BY_ANOTHER_TYPE, MESSAGE_LIMIT, CloudError

ADVICE_LIMIT = 300
_LIMIT = MESSAGE_LIMIT - 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def refusal_text(claim: Claim, error: CloudError) -> str:
    """One line for the claim's condition and Events, of at most 750 characters: the next try's moment may follow."""
    if not isinstance(error, HELPED_BY_ANOTHER_TYPE):
        return error.within(_LIMIT)
    advice = _advice(claim)
    cause = error.within(_LIMIT - len(advice) - 2)
    return f"{cause}{'' if cause.endswith('.') else '.'} {advice}" if advice else cause


def _advice(claim: Claim) -> str:
    asked = claim.requirement(labels.INSTANCE_TYPE) or ""
    sentences = [f"Instance type asked for: {asked}."] if _NAME.fullmatch(asked) else []
    others = [name.strip() for name in claim.annotations.get(labels.FITTING_INSTANCE_TYPES, "").split(",")]
    names = [name for name in others if _NAME.fullmatch(name) and name.lower() != asked.lower()]
    while len(", ".join(names)) > ADVICE_LIMIT:
        names.pop()
    if names:
        sentences.append(f"Other instance types that fit: {', '.join(names)}.")
    return " ".join(sentences)
