"""The day that a chat template puts into a conversation: always the same one, whenever a training is started.

transformers hands templates ``strftime_now(format)``, which Llama 3.2's calls for its system turn. What is learned
would depend on the day, the check would count other tokens than the training, and a restart go on with other rows.
"""

from __future__ import annotations

import re
from datetime import datetime

DAY = datetime(2024, 7, 26)
"""What Llama 3's templates put where nobody tells them the day."""

_CALL = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1)[^\\])*)\1\s*\)""")
_COMPUTED = re.compile(r"strftime_now\s*\(")
_MACRO = "{%- macro strftime_now(format) -%}" + f"{DAY:%d %b %Y}" + "{%- endmacro +%}"


def on_one_day(template: str) -> str:
    """The template with that day in the place of today's, in the template's own format where it is written there."""
    fixed = _CALL.sub(lambda call: f"{call[1]}{DAY.strftime(call[2])}{call[1]}", template)
    return _MACRO + fixed if _COMPUTED.search(fixed) else fixed
