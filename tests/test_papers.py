"""Every paper that the package names is one that it can cite."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import mechvlm
from mechvlm.axes import labelled
from mechvlm.errors import ResultError
from mechvlm.papers import PAPERS, cite

PACKAGE = Path(mechvlm.__file__).parent
KEY = re.compile(r"arXiv:[\w.]*\d")


def named():
    """Every paper key in the package's source, with the file that names it."""
    for file in PACKAGE.rglob("*.py"):
        if file.name != "papers.py":
            for key in KEY.findall(file.read_text(encoding="utf-8")):
                yield key, file.relative_to(PACKAGE)


def test_every_named_paper_is_known():
    found = list(named())
    assert len(found) > 8, "the search finds nothing: this test shows nothing"
    assert [(key, file) for key, file in found if key not in PAPERS] == []


def test_keys_and_citations_have_one_form():
    for key, citation in PAPERS.items():
        assert re.fullmatch(r"arXiv:\d{4}\.\d{5}", key)
        assert re.fullmatch(r"[A-Z][^:]+: [^\n]+\. (\w+ )?20\d\d\.", citation), citation
        # An arXiv number begins with year and month; a paper is not older than that.
        assert int(citation[-5:-1]) >= 2000 + int(key[6:8])


def test_a_result_cites_its_paper():
    result = labelled([1.0], name="m", units="-", paper="arXiv:2304.14767", layer=[0])
    assert cite(result) == cite("arXiv:2304.14767")
    assert cite(result).startswith("Geva, ")
    assert cite(result).endswith(" arXiv:2304.14767")


@pytest.mark.parametrize("key", ["arXiv:0000.00000", "-", None, 3])
def test_an_unknown_paper_is_refused(key):
    with pytest.raises(
        ResultError, match=f"no paper is known as {key!r}. Wanted one of"
    ):
        cite(SimpleNamespace(attrs={"paper": key}))


def test_a_result_without_a_paper_is_refused():
    with pytest.raises(ResultError, match=r"carry it as `result\.attrs\[\"paper\"\]`"):
        cite(SimpleNamespace(attrs={}))
