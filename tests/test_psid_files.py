import random
import zipfile

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psid_downloads import fixed_width, statements, write_csv, write_files, write_zip

from labor_llm.datasets import psid_files
from labor_llm.datasets.psid_files import data_files
from labor_llm.errors import DataError, LaborLLMError

CELLS = {
    "ER30001": [4, 17, 9308],
    "V81": ["", 12, ""],
    "ER21159": ["12.50", "0.00", "998.00"],
    "ER24105": [-5, 0, 7],
}
TABLE = pl.DataFrame(
    {"ER30001": [4, 17, 9308], "V81": [None, 12, None], "ER21159": [12.5, 0, 998], "ER24105": [-5, 0, 7]},
    schema_overrides={"V81": pl.Int32},
    strict=False,
)


def table_of(raw, *names) -> pl.DataFrame:
    (data,) = data_files(raw)
    return data.read(names or sorted(data.variables, key=list(CELLS).index))


def same(left: pl.DataFrame, right: pl.DataFrame) -> bool:
    return left.cast(pl.Float64).equals(right.cast(pl.Float64))


@pytest.mark.parametrize("kind", ["do", "sps", "sas"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_numbers_are_read_where_the_statements_say(tmp_path, kind, newline):
    write_files(tmp_path, "FAM2003ER", CELLS, [kind], newline)
    assert same(table_of(tmp_path), TABLE)
    assert same(table_of(tmp_path, "V81", "ER30001"), TABLE.select("V81", "ER30001"))


def test_archives_and_csv_hold_the_same(tmp_path):
    write_zip(tmp_path / "zip" / "fam2003er.zip", "FAM2003ER", CELLS)
    write_csv(tmp_path / "J1.csv", CELLS)
    (tmp_path / "J2.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "J1.csv").read_bytes().replace(b"\n", b"\r\n"))
    for raw in ("zip", "zip/fam2003er.zip", "J1.csv", "J2.csv"):
        assert same(table_of(tmp_path / raw), TABLE)


def test_statements_of_the_data_center_are_understood(tmp_path):
    (tmp_path / "J9.txt").write_text("1000412345\n")
    (tmp_path / "J9.do").write_text(
        "#delimit ;\n*  PSID DATA CENTER ****\n   JOBID            : 9\n   N_OF_VARIABLES   : 3\n"
        "   N_OF_OBSERVATIONS: 1                    \n   MAX_REC_LENGTH   : 10\n***\n;\n\ninfix\n"
        "      ER30000      1 - 1     ER30001      2 - 5    \n long V81          6 - 10   \n"
        'using J9.txt, clear\n;\nlabel variable ER30000  "RELEASE 1 - 2" ;\n'
    )
    (tmp_path / "J9_formats.do").write_text("label define ER30000L 1 - 3 ;")
    assert table_of(tmp_path, "ER30000", "ER30001", "V81").rows() == [(1, 4, 12345)]


@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory, data):
    number = st.one_of(
        st.integers(-(10**7), 10**12), st.none(), st.decimals(-1000, 10**6, places=2, allow_nan=False)
    )
    rows = data.draw(st.integers(1, 5))
    columns = data.draw(st.lists(st.lists(number, min_size=rows, max_size=rows), min_size=1, max_size=4))
    cells = {f"V{place}": ["" if v is None else str(v) for v in values] for place, values in enumerate(columns)}
    text, spans = fixed_width(cells)
    lines = [line.ljust(len(line)) + data.draw(st.sampled_from(["\n", "\r\n"])) for line in text.splitlines()]
    folder = tmp_path_factory.mktemp("round")
    (folder / "J1.txt").write_bytes(
        "".join(lines).encode() + data.draw(st.sampled_from([b"", b"\r\n\n", b"\x1a"]))
    )
    (folder / "J1.sps").write_text(statements("sps", "J1", spans, rows))
    (file,) = data_files(folder)
    for name, values in zip(cells, columns, strict=True):
        expected = [None if value is None else float(value) for value in values]
        assert file.read([name])[name].cast(pl.Float64).to_list() == expected


def test_numbers_may_stand_to_the_left(tmp_path):
    (tmp_path / "J1.txt").write_text("12  7 \n   34.\n")
    (tmp_path / "J1.do").write_text("infix\n V1 1 - 4 V2 5 - 6\nusing x")
    assert table_of(tmp_path, "V1", "V2").rows() == [(12.0, 7.0), (3.0, 4.0)]


def test_a_file_of_many_blocks_is_one_table(tmp_path, monkeypatch):
    cells = {"V1": list(range(1000)), "V2": ["0.5" if row == 700 else row % 7 for row in range(1000)]}
    write_files(tmp_path, "J1", cells, ["do"])
    whole = table_of(tmp_path, "V1", "V2")
    for size in (1, 10, 97, 4096):
        monkeypatch.setattr(psid_files, "BLOCK", size)
        assert same(table_of(tmp_path, "V1", "V2"), whole)
    assert whole["V1"].to_list() == list(range(1000))


def test_blanks_at_the_end_of_a_line_may_be_cut_off(tmp_path):
    write_files(tmp_path, "J1", {"V1": [4, 17, 9308], "V81": ["", 12, ""]}, ["do"])
    path = tmp_path / "J1.txt"
    whole = table_of(tmp_path, "V1", "V81")
    path.write_bytes(b"\n".join(line.rstrip() for line in path.read_bytes().splitlines()) + b"\r\n")
    assert same(table_of(tmp_path, "V1", "V81"), whole)
    assert whole["V81"].to_list() == [None, 12, None]


def test_a_last_line_without_its_end_is_read(tmp_path):
    write_files(tmp_path, "J1", CELLS, ["do"])
    path = tmp_path / "J1.txt"
    path.write_bytes(path.read_bytes()[:-1])
    assert same(table_of(tmp_path), TABLE)


def test_statements_need_not_be_utf8_and_readmes_are_no_data(tmp_path):
    write_files(tmp_path, "J1", CELLS, ["do"])
    (tmp_path / "J1.do").write_bytes("* Überblick\n".encode("latin-1") + (tmp_path / "J1.do").read_bytes())
    (tmp_path / "readme.txt").write_text("Please cite")
    (tmp_path / "codebook.pdf").write_bytes(b"%PDF-1.4")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._J1.txt").write_bytes(b"\0\5\26\7")
    assert same(table_of(tmp_path), TABLE)


def broken(folder, name="J1.txt", change=lambda content: content):
    write_files(folder, "J1", CELLS, ["do"])
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    return folder


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("J1.txt", lambda _: b"", r"J1\.txt is an empty file: download it again"),
        ("J1.txt", lambda _: b"\r\n\n", r"J1\.txt is an empty file"),
        (
            "J1.txt",
            lambda text: text[:-3],
            r"J1\.txt line 3: it has 12 characters, .* says 14\. The file is cut off",
        ),
        ("J1.txt", lambda text: text[: text.index(b"\n") + 1], r"has 1 lines, .*J1\.do promises 3"),
        (
            "J1.txt",
            lambda text: text.replace(b"998", b"9x8"),
            r"line 3: variable ER21159 is '9x8\.00', which is no",
        ),
        ("J1.txt", lambda text: text.replace(b"998", b"9\xff8"), r"line 3: variable ER21159 is '9\?8\.00'"),
        ("J1.txt", lambda text: text.replace(b"998", b"9 8"), r"variable ER21159 is '9 8\.00'"),
        ("J1.txt", lambda text: text.replace(b"998.00", b"   nan"), "variable ER21159 is 'nan'"),
        ("J1.txt", lambda text: text.replace(b"\n", b"  \n", 1), r"line 1: it has 16 characters"),
        (
            "J1.txt",
            lambda text: text.replace(b"\n", b"").replace(b"  4", b"\n  4"),
            "characters, and .*J1.do says 14",
        ),
        ("J1.txt", lambda _: b"  12\n  13\n", r"J1\.txt has no line of the 14 characters that .*J1\.do says"),
        (
            "J1.txt",
            lambda _: b"<html><body>Log in</body></html>\n",
            "The file is cut off, or the two are not of one",
        ),
        ("J1.do", lambda _: b"<html>Log in</html>", r"holds no PSID data, but J1\.do, J1\.txt\. Expected"),
        (
            "J1.do",
            lambda text: text.replace(b"1 - ", b"9 - "),
            r"J1\.do: the columns of variable ER30001 are \(9, 4\)",
        ),
    ],
)
def test_broken_text_and_statements_are_refused(tmp_path, name, change, message):
    with pytest.raises(DataError, match=message):
        table_of(broken(tmp_path, name, change))


def test_broken_archives_are_refused(tmp_path):
    write_zip(tmp_path / "good.zip", "J1", CELLS)
    good = (tmp_path / "good.zip").read_bytes()
    encrypted = bytearray(good)
    for sign, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[good.index(sign) + offset] |= 1
    for content in (good[: len(good) // 2], b"%PDF-1.4", b"", b"<html>", bytes(encrypted)):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.zip is not a readable zip archive: download it again"):
            table_of(tmp_path / "bad.zip", "V81")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("notes.pdf", b"%PDF")
    with pytest.raises(DataError, match=r"other\.zip holds no PSID data, but notes\.pdf"):
        data_files(tmp_path / "other.zip")


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.raw: no file or folder at .*absent"):
        data_files(tmp_path / "absent")
    with pytest.raises(DataError, match="holds no PSID data, but nothing"):
        data_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("V81,V82\n", "has a header and no rows"),
        ("V81,v81\n1,2\n", "two columns have the same name"),
        ("V81,V82\n1,x\nx,2\n", r"line 3: variable V81 is 'x', which is no number\. Is it a PSID file"),
    ],
)
def test_csv_that_is_no_table_of_numbers_is_refused(tmp_path, content, message):
    (tmp_path / "J1.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        table_of(tmp_path, "V81")


def test_any_bytes_are_read_or_refused(tmp_path):
    write_zip(tmp_path / "zip" / "J1.zip", "J1", CELLS)
    write_files(tmp_path / "text", "J1", CELLS, ["do", "sps", "sas"])
    (tmp_path / "csv").mkdir()
    write_csv(tmp_path / "csv" / "J1.csv", CELLS)
    choose = random.Random(1)
    for trial in range(300):
        folder = tmp_path / ("zip", "text", "csv")[trial % 3]
        path = choose.choice(sorted(folder.iterdir()))
        whole = path.read_bytes()
        content = bytearray(whole)
        for _ in range(choose.choice([0, 1, 3])):
            content[choose.randrange(len(content))] = choose.choice([0, 10, 34, 46, choose.randrange(256)])
        path.write_bytes(content[: choose.randrange(len(content))] if trial % 4 == 0 else content)
        try:
            for data in data_files(folder):
                assert data.read(list(data.variables)).height > 0
        except LaborLLMError:
            pass
        path.write_bytes(whole)
