"""What is generated from the charts and how they are checked: for those who change them, not for who installs them.

``python -m kaito_local.charts generate`` writes what the schemas of values repeat of values.yaml, the documents below
docs/reference and the golden renders, ``python -m kaito_local.charts check`` says whether they are as they would be
written, and runs the charts' own suites and four maintained checkers over all renders.
"""
