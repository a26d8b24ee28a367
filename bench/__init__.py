"""Figures, measured on the running system and beside a peer or a limit.

`python -m bench NAME [--quick] --json` prints one JSON object; `python -m bench all` (make bench) runs every entry
and renders `docs/figures.md` from `docs/figures.json`. An entry is a module here with `ABOUT`, `FIGURES` and
`run(quick)`.
"""
