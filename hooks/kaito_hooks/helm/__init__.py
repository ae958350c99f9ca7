"""What the charts' Helm hooks run: applying CRDs before an upgrade, guarding an uninstall, and `helm test`.

Each command is one short Job that reads or writes the API server and ends with a sentence. Nothing imports this
package; the charts' templates call it as ``python -m kaito_hooks.helm``.
"""
