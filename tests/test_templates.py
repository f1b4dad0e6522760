"""Career -> text: exact spans, append-only, nothing from the future in the header."""

import polars as pl
import pytest
from conftest import panel
from hypothesis import given
from hypothesis import strategies as st

from labor_llm.careers import Careers
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import Codes, ResumeTemplate, Titles

TEMPLATES = [ResumeTemplate(), ResumeTemplate(name="resume_no_birth_year", birth_year=False)]
LABELS = [Titles(), Codes()]

PAPER = """\
<A worker from the NLSY79 dataset>
The following information is available about the work history of a female white US worker residing in the \
south region.
The worker was born in 1963.
The worker has the following records of work experience, one entry per line, including year, education level, \
and the job title:
1984 (some college): Cooks
1985: In school
"""


def career(**changes) -> Careers:
    return panel(
        person_id=["1", "1"],
        year=[1984, 1985],
        occupation=["436", "in_school"],
        education=["some college", None],
        region=["south", "west"],
        gender=["female"] * 2,
        ethnicity=["white"] * 2,
        birth_year=[1963] * 2,
        **changes,
    )


def test_the_papers_wording():
    assert ResumeTemplate().render(career(), Titles()).text == PAPER


def test_unknown_values_are_left_out():
    bare = panel(person_id=["1"], year=[1984], occupation=["436"])
    text = ResumeTemplate().render(bare, Titles()).text
    assert "history of a US worker.\n" in text
    assert text.endswith("job title:\n1984: Cooks\n")
    assert "born" not in text
    assert "nan" not in text.lower().replace("available", "")


codes = st.sampled_from(Taxonomy.packaged("occ1990dd").codes)
education = st.none() | st.sampled_from(["high school", "college"])
records = st.lists(st.tuples(codes, education), min_size=1, max_size=6)


def of(records) -> Careers:
    occupation, levels = zip(*records, strict=True)
    years = list(range(1980, 1980 + len(records)))
    return panel(person_id=["1"] * len(records), year=years, occupation=list(occupation), education=list(levels))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.name)
@given(records=records)
def test_every_span_holds_its_title(template, label, records):
    careers = of(records)
    rendered, names = template.render(careers, label), label.names(careers.taxonomy)
    assert [rendered.text[a:b] for a, b in rendered.title_spans] == [names[code] for code, _ in records]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)
@given(records=records, more=records)
def test_text_is_only_ever_appended_to(template, records, more):
    before = template.render(of(records), Titles()).text
    assert template.render(of(records + more), Titles()).text.startswith(before)


def test_header_knows_nothing_after_the_first_record():
    later = career().table.with_columns(region=pl.Series(["south", "northeast"]))
    changed = Careers.validated(later, dataset="test", taxonomy=career().taxonomy, source="test")
    assert ResumeTemplate().headers(changed)[0] == ResumeTemplate().headers(career())[0]


def test_whole_texts_are_the_rendered_ones_and_a_footer():
    both = panel(person_id=["1", "1", "2"], year=[1984, 1985, 1990], occupation=["436", "095", "004"])
    template = ResumeTemplate()
    for person, text in zip(["1", "2"], template.texts(both, Titles()), strict=True):
        assert text == template.render(both.select_persons([person]), Titles()).text + template.footer


def test_codes_are_distinct_and_say_nothing():
    taxonomy = Taxonomy.packaged("occ1990dd")
    names = Codes().names(taxonomy)
    assert len(set(names.values())) == len(taxonomy.codes)
    assert all(name.startswith("job_") and len(name) == 7 for name in names.values())
    assert [names[code] for code in taxonomy.codes] != sorted(names.values())


def test_render_wants_one_person():
    with pytest.raises(ValueError, match="one person"):
        ResumeTemplate().render(panel(person_id=["1", "2"], year=[1990, 1990], occupation=["004"] * 2), Titles())
