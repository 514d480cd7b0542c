"""The tables of docs/papers/: every claim of the four papers, judged by the result files.

python experiments/papers.py           # rewrites the tables between their markers
python experiments/papers.py --quick   # makes them and writes nothing
"""

from __future__ import annotations

import argparse

import claims_completion
import claims_dash
import claims_dual
import claims_lora
from bed import ROOT, replace_between
from claims import table

PAGES = {
    "dual": claims_dual.CLAIMS,
    "dash": claims_dash.CLAIMS,
    "lora": claims_lora.CLAIMS,
    "completion": claims_completion.CLAIMS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="no page is written")
    quick = parser.parse_args().quick
    for page, claims in PAGES.items():
        made = table(claims)
        assert len(made.splitlines()) == len(claims) + 4, made
        print(f"{page}: {made.splitlines()[0]}")
        if not quick:
            replace_between(ROOT / "docs" / "papers" / f"{page}.md", "claims", made)


if __name__ == "__main__":
    main()
