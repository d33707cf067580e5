"""Label files as bad as they come: each planted fault is named by file and line or tolerated by rule, and nothing that a file holds ends in a traceback or a wrong number."""

import os
import time

import numpy as np
import pandas as pd
import pytest

from au_study.datasets.base import Recording
from au_study.datasets.bp4d import BP4D
from au_study.datasets.bp4d_plus import BP4DPlus
from au_study.datasets.cards import load_dataset_manifest, load_split, make_card, split_names
from au_study.datasets.labels import MAX_LINES, read_codes, read_rows
from au_study.datasets.problems import SEVERITIES, DatasetError, Problem, problems_frame, tally

AUS = (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)
HEADER = "0," + ",".join(map(str, AUS))
FRAMES = range(244, 252)


def rows_of(frames=FRAMES):
    "A sound file's rows: frame, then a code for each AU that depends on both."
    return [f"{f}," + ",".join("9" if (f, a) == (246, 24) else str((f + a) % 2) for a in AUS) for f in frames]


def sound(header=HEADER, rows=None, end="\n"):
    return end.join([header, *(rows or rows_of())]) + end


def with_row(i, text):
    "A sound file with another row i."
    rows = rows_of()
    rows[i] = text
    return sound(rows=rows)


@pytest.fixture
def read(tmp_path):
    "Write one label file of BP4D and read it: (frame table, problems as text)."

    def read(content, name="F901_T1.csv", **options):
        root = tmp_path / "BP4D Größe 数据"
        (root / "AUCoding").mkdir(parents=True, exist_ok=True)
        (root / "AUCoding" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        data = BP4D(root, **options)
        (recording,) = [r for r in data.recordings() if r.labels]
        table, problems = data.read_labels(recording)
        assert all(p.severity in SEVERITIES and (p.subject, p.video) == ("F901", "T1") and p.file == f"AUCoding/{name}" for p in problems)
        return table, [str(p) for p in problems if "There are no columns" not in p.message]

    return read


def truth():
    "What a sound file holds, by hand."
    return pd.DataFrame([{"frame": f, **{f"AU{a}": np.nan if (f, a) == (246, 24) else float((f + a) % 2) for a in AUS}} for f in FRAMES])


def same_as_sound(table):
    "Whether a table holds what a sound file holds."
    return table[["frame", *(f"AU{a}" for a in AUS)]].equals(truth())


FILE = "AUCoding/F901_T1.csv"
NAMED = {  # what was done to the file: (content, the beginning of the problem that names it)
    "code 7": (with_row(3, "247," + ",".join(["7"] + ["0"] * 11)), f"error   {FILE}:5:AU1 found 7, expected 0, 1 or 9 (not coded)"),
    "code -1": (with_row(0, "244," + ",".join(["0"] * 11 + ["-1"])), f"error   {FILE}:2:AU24 found -1, expected"),
    "code 2": (with_row(0, "244," + ",".join(["2"] + ["0"] * 11)), f"error   {FILE}:2:AU1 found 2, expected"),
    "letter O": (with_row(0, "244," + ",".join(["O"] + ["0"] * 11)), f"error   {FILE}:2:AU1 found 'O', expected"),
    "nan": (with_row(0, "244," + ",".join(["nan"] + ["0"] * 11)), f"error   {FILE}:2:AU1 found 'nan', expected"),
    "half": (with_row(0, "244," + ",".join(["0.5"] + ["0"] * 11)), f"error   {FILE}:2:AU1 found '0.5', expected"),
    "empty cell": (with_row(0, "244," + ",".join([""] + ["0"] * 11)), f"error   {FILE}:2:AU1 found an empty cell"),
    "spreadsheet error": (with_row(0, "244," + ",".join(["#REF!"] + ["0"] * 11)), f"error   {FILE}:2:AU1 found '#REF!'"),
    "missing header": ("\n".join(rows_of()), f"error   {FILE}:1 the first line holds labels"),
    "empty header": (sound(header="," * 12), f"error   {FILE}:1 the line is empty, but more rows follow"),
    "header of another AU": (sound(header=HEADER.replace(",24", ",25")), f"error   {FILE}:1:AU24 the header has no column AU24"),
    "header twice": (sound(rows=[*rows_of()[:3], HEADER, *rows_of()[3:]]), f"error   {FILE}:5 the header comes again"),
    "AU twice": (sound(header=HEADER + ",12", rows=[r + ",0" for r in rows_of()]), f"error   {FILE}:1:AU12 AU12 comes again in column 14"),
    "extra column": (sound(header=HEADER + ",coder", rows=[r + ",ab" for r in rows_of()]), f"warning {FILE}:1:coder column 14 is called 'coder'"),
    "extra AU": (sound(header=HEADER + ",99", rows=[r + ",5" for r in rows_of()]), f"note    {FILE}:1 the columns AU99 are not coded"),
    "column without a name": (sound(header=HEADER.replace(",4,", ",,"), rows=rows_of()), f"error   {FILE}:1 columns [4] have no name"),
    "frame twice, same labels": (sound(rows=rows_of([*FRAMES, 250])), f"error   {FILE}:10:frame frame 250 comes again; it stands on line 8 with the same labels"),
    "frame twice, other labels": (with_row(7, "0250," + ",".join("0" * 12)), f"error   {FILE}:9:frame frame 250 comes again; it stands on line 8 with other labels"),
    "gap": (sound(rows=rows_of([244, 245, 249])), f"warning {FILE}:4:frame frames 246 to 248 have no row"),
    "frames out of order": (sound(rows=rows_of([245, 244, 246])), f"warning {FILE}:3:frame frame 244 comes after frame 245"),
    "short row": (with_row(2, "246,0,1"), f"error   {FILE}:4 the row has 3 cells, expected 13"),
    "long row": (with_row(2, rows_of()[2] + ",1"), f"error   {FILE}:4 the row has 14 cells, expected 13"),
    "cut off": (sound()[:-9], f"error   {FILE}:9 the row has 9 cells, expected 13. It is the last row: the file may have been cut off."),
    "huge frame": (with_row(0, "99999999999999999999," + ",".join("0" * 12)), f"error   {FILE}:2:frame the frame number '99999999999999999999' is larger"),
    "frame of eight digits": (with_row(0, "24400000," + ",".join("0" * 12)), f"error   {FILE}:2:frame the frame number '24400000' is larger"),
    "negative frame": (with_row(0, "-244," + ",".join("0" * 12)), f"error   {FILE}:2:frame found '-244' as frame number"),
    "half frame": (with_row(0, "244.5," + ",".join("0" * 12)), f"error   {FILE}:2:frame found '244.5' as frame number"),
    "frame of other digits": (with_row(0, "٢٤٤," + ",".join("0" * 12)), f"error   {FILE}:2:frame found '٢٤٤' as frame number"),
    "missing frame": (with_row(0, "," + ",".join("0" * 12)), f"error   {FILE}:2:frame the frame number is missing"),
    "footer": (sound() + "coded by A.B.\n", f"error   {FILE}:10 the row has 1 cell, expected 13"),
    "empty line inside": (sound(rows=[*rows_of()[:3], "", *rows_of()[3:]]), f"error   {FILE}:5 the line is empty"),
    "commas alone inside": (sound(rows=[*rows_of()[:3], "," * 12, *rows_of()[3:]]), f"error   {FILE}:5 the line is empty"),
    "semicolons": (sound().replace(",", ";"), f"warning {FILE}:1 cells are separated by ';'"),
    "tabs": (sound().replace(",", "\t"), f"warning {FILE}:1 cells are separated by tabs"),
    "decimal commas": (sound(HEADER.replace(",", ";"), [r.replace(",", ";").replace(";1;", ";1,0;") for r in rows_of()]), f"error   {FILE}:2:AU1 found the decimal comma '1,0'"),
    "semicolons on one line": (with_row(2, rows_of()[2].replace(",", ";")), f"error   {FILE}:4 the row has 1 cell"),
    "empty file": (b"", f"error   {FILE} the file is empty"),
    "blank file": (b"\xef\xbb\xbf\r\n  \r\n,,,\r\n", f"error   {FILE} the file is empty"),
    "header alone": (HEADER + "\n", f"error   {FILE} the file holds no row of labels"),
    "binary": (np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8).tobytes(), f"error   {FILE}:"),
    "zero bytes": (sound().encode()[:90] + b"\0" * 500, f"error   {FILE}:4 the file holds zero bytes"),
    "Latin-1": (sound().encode() + "244,é".encode("latin-1"), f"error   {FILE}:10 byte 0xe9 is not UTF-8 text"),
    "UTF-16 without a mark": (sound().encode("utf-16-le"), f"error   {FILE}:1 the file holds zero bytes"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(300), f"error   {FILE} the file is a JPEG image"),
    "a workbook": (b"PK\x03\x04" + bytes(300), f"error   {FILE} the file is a zip archive or an Excel workbook"),
    "a login page": (b"<!DOCTYPE html>\n<html><title>Sign in</title>", f"error   {FILE} the file is an HTML page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", f"error   {FILE} the file is a Git LFS pointer"),
}  # fmt: skip

TOLERATED = {  # content: the beginnings of the notes; the labels are those of the sound file
    "byte order mark": (b"\xef\xbb\xbf" + sound().encode(), [f"note    {FILE}:1 the file starts with a byte order mark"]),
    "Windows": (sound(end="\r\n"), [f"note    {FILE}:1 the lines end as Windows"]),
    "old Mac": (sound(end="\r"), [f"note    {FILE}:1 the lines end as Windows or an old Mac"]),
    "converted twice": (sound(end="\r\r\n"), [f"note    {FILE}:1 the lines end"]),
    "both": (b"\xef\xbb\xbf" + sound(end="\r\n").encode(), ["note", "note"]),
    "UTF-16": (sound().encode("utf-16"), [f"note    {FILE}:1 the file starts with the mark of UTF-16"]),
    "empty lines at the end": (sound() + "\n\n  \n", [f"note    {FILE}:10 the file ends with 3 empty line(s)"]),
    "commas alone at the end": (sound() + "," * 12 + "\n" + "," * 12, [f"note    {FILE}:10"]),
    "trailing commas": (sound(header=HEADER + ",", rows=[r + "," for r in rows_of()]), [f"note    {FILE}:2 rows end with commas"]),
    "trailing commas, header without": (sound(rows=[r + "," for r in rows_of()]), [f"note    {FILE}:2 rows end with commas"]),
    "quotes": (sound(rows=['"' + r.replace(",", '","') + '"' for r in rows_of()]), [f"note    {FILE}:2 cells stand in quotation marks"]),
    "no line end": (sound()[:-1], []),
    "spaces": (sound().replace(",", " , "), []),
    "padded frames": (sound(rows=["00" + r for r in rows_of()]), []),
    "frames of a spreadsheet": (sound(rows=[r.replace(",", ".0,", 1) for r in rows_of()]), []),
    "codes of a spreadsheet": (sound(rows=[r.replace(",1", ",1.0") for r in rows_of()]), []),
    "AU names": (sound(header="frame," + ",".join(f"AU{a}" for a in AUS)), []),
    "padded AU names": (sound(header="Frame," + ",".join(f"AU{a:02d}" for a in AUS)), []),
    "AU names with a space": (sound(header="," + ",".join(f"au {a}" for a in AUS)), []),
    "padded numbers": (sound(header="0," + ",".join(f"{a:02d}" for a in AUS)), []),
    "columns in another order": ("\n".join(",".join(np.array(r.split(","))[[0, *range(12, 0, -1)]]) for r in [HEADER, *rows_of()]), []),
    "rows in another order": (sound(rows=rows_of()[::-1]), [f"warning {FILE}:3:frame frame 250 comes after frame 251; the rows are sorted (7 such places in all)."]),
}  # fmt: skip


@pytest.mark.parametrize("fault", NAMED)
def test_fault_is_named(read, fault):
    content, said = NAMED[fault]
    table, problems = read(content)
    assert any(p.startswith(said) for p in problems), problems
    assert all(len(p.splitlines()) == 1 and p.isprintable() for p in problems)
    labels = table[[f"AU{a}" for a in AUS]].to_numpy()
    assert set(labels[~np.isnan(labels)]) <= {0.0, 1.0}
    assert not table.duplicated(["subject", "video", "frame"]).any() and table["frame"].is_monotonic_increasing


@pytest.mark.parametrize("oddity", TOLERATED)
def test_oddity_is_read_as_meant(read, oddity):
    content, said = TOLERATED[oddity]
    table, problems = read(content)
    assert len(problems) == len(said) and all(p.startswith(s) for p, s in zip(problems, said, strict=True)), problems
    assert same_as_sound(table)


def test_nine_is_unlabelled_and_nothing_else(read):
    table, problems = read(sound())
    assert problems == []
    assert table[table.isna()[[f"AU{a}" for a in AUS]].any(axis=1)]["frame"].tolist() == [246]
    assert table.loc[table["frame"] == 246, "AU24"].isna().all()


def test_a_bad_row_costs_its_own_labels_only(read):
    table = read(NAMED["short row"][0])[0]
    bad = table["frame"] == 246
    assert table.loc[~bad, "AU12"].equals(truth().loc[~bad, "AU12"]) and table.loc[bad, "AU1":].isna().all(axis=None)


@pytest.mark.parametrize("name", ["f901_t1.CSV", "F901_T01.csv", "F901_T1.Csv", "f0901_T1.csv"])
def test_names_in_another_spelling(read, name):
    assert same_as_sound(read(sound(), name)[0])


def test_many_faults_are_counted(read):
    table, problems = read(sound(rows=[f"{f}," + ",".join("8" * 12) for f in range(3000)]))
    assert len(problems) == 21 and problems[-1].startswith(f"error   {FILE}:3001 there are {3000 * 12 - 20} more cells")
    assert len(table) == 3000 and table["AU1"].isna().all()


def test_files_that_are_no_files(tmp_path):
    root = tmp_path
    (root / "folder.csv").mkdir()
    (root / "nothing.csv").symlink_to(root / "gone")
    (root / "circle.csv").symlink_to(root / "circle.csv")
    os.mkfifo(root / "pipe.csv")  # reading it would wait for ever
    with open(root / "large.csv", "wb") as f: f.truncate(2**40)  # a terabyte of holes
    (root / "lines.csv").write_bytes(b"1\n" * (MAX_LINES + 1))
    for name, said in (("folder", "is not a regular file"), ("nothing", "is a link to something that is not there"), ("circle", "is a link"), ("pipe", "is not a regular file"),
                       ("gone", "does not exist"), ("large", "has 1048576 MB"), ("lines", "lines; a label file has less than")):
        rows, problems = read_rows(root / f"{name}.csv", root)
        assert rows == [] and len(problems) == 1 and said in str(problems[0]), (name, problems)
        assert read_codes(root / f"{name}.csv", root, (0, 1))[1] == problems


def test_names_that_no_terminal_prints(tmp_path):
    root = tmp_path / "r"
    (root / "AUCoding").mkdir(parents=True)
    for name in (b"F901_T1\xff.csv", b"line\nbreak.csv"): (root / "AUCoding" / os.fsdecode(name)).write_text("x")
    problems = BP4D(root).problems
    text = "\n".join(map(str, problems))
    assert r"F901_T1\xff.csv" in text and r"line\nbreak.csv" in text and len(text.splitlines()) == len(problems)
    text.encode("utf-8")
    problems_frame(problems).to_parquet(tmp_path / "p.parquet")


def test_a_tree_of_faults_never_ends_in_a_traceback(tmp_path):
    "Bytes of sound files are changed, cut and repeated at random: the adapters raise DatasetError or return labels in range."
    random = np.random.default_rng(1)
    for data, folder in ((BP4D, "AUCoding"), (BP4DPlus, "AUCoding/AU_OCC")):
        root = tmp_path / folder.replace("/", "-")
        (root / folder).mkdir(parents=True)
        aus = load_dataset_manifest(data.name).coded_aus
        good = ("0," + ",".join(map(str, aus)) + "\n" + "".join(f"{f}," + ",".join(str((f + a) % 2) for a in aus) + "\n" for f in range(1, 9))).encode()
        for _ in range(60):
            content = bytearray(good)
            for _ in range(random.integers(1, 6)):
                i, j = np.sort(random.integers(0, len(content), 2))
                content[i:j] = [b"", content[i:j] * 2, random.integers(0, 256, 5).astype(np.uint8).tobytes(), b"\r\n", b",,", b"\xef\xbb\xbf"][random.integers(6)]
                if not content: break
            (root / folder / "F901_T1.csv").write_bytes(bytes(content))
            opened = data(root)
            (recording,) = opened.recordings()
            table, problems = opened.read_labels(recording)
            values = table[opened.columns].to_numpy(dtype=float)
            assert set(values[~np.isnan(values)]) <= {0.0, 1.0} and not table["frame"].duplicated().any()
            try: opened.labels()
            except DatasetError as e: assert str(e) and e.problems


def test_strict_labels_raise_all_errors_at_once(tmp_path):
    (tmp_path / "AUCoding").mkdir()
    for i in range(3): (tmp_path / f"AUCoding/F90{i}_T1.csv").write_text(NAMED["code 7"][0])
    with pytest.raises(DatasetError) as caught: BP4D(tmp_path).labels()
    assert [p.file for p in caught.value.problems] == [f"AUCoding/F90{i}_T1.csv" for i in range(3)]
    labels = BP4D(tmp_path).labels(strict=False)
    assert len(labels) == 3 * len(FRAMES) and labels["AU1"].isna().sum() == 3


def test_pictures_that_are_missing_do_not_stop_the_labels(tmp_path):
    for who in ("F901", "F902"):
        (tmp_path / "AUCoding").mkdir(exist_ok=True)
        (tmp_path / f"AUCoding/{who}_T1.csv").write_text(sound())
    (tmp_path / "BP4D-training/F901/T1").mkdir(parents=True)
    data = BP4D(tmp_path)
    (problem,) = [p for p in data.problems if p.severity == "error"]
    assert problem.file == "BP4D-training/F902/T1" and "AUCoding/F902_T1.csv" in problem.message
    assert len(data.labels()) == 2 * len(FRAMES) and data.recordings()[1].media is None


def test_an_intensity_file_that_is_missing_is_named_by_its_path(tmp_path):
    for au in (6, 10, 12, 14):
        path = tmp_path / f"AUCoding/AU_INT/AU{au:02d}/F901_T1_AU{au:02d}.csv"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{f},1\n" for f in FRAMES if (au, f) != (6, 251)))
    data = BP4D(tmp_path, kind="intensity")
    assert ("AUCoding/AU_INT/AU17/F901_T1_AU17.csv", "F901", "T1") in [(p.file, p.subject, p.video) for p in data.problems if "missing" in p.message]
    assert "1 frame missing that the other AUs have" in str(data.read_labels(data.recordings()[0])[1])


def test_a_recording_without_labels_has_no_rows(tmp_path):
    (tmp_path / "BP4D-training/F901/T1").mkdir(parents=True)
    data = BP4D(tmp_path)
    table, problems = data.read_labels(Recording("F901", "T1"))
    assert (len(table), problems) == (0, [])
    with pytest.raises(DatasetError, match="There are no occurrence labels"): data.labels()


def test_other_codes_only_by_option(read):
    content = with_row(0, "244," + ",".join(["999"] + ["0"] * 11))
    assert any("found 999" in p for p in read(content)[1])
    table, problems = read(content, unlabelled=(9, 999))
    assert problems == [] and np.isnan(table["AU1"].iloc[0])


def test_all_of_bp4d_takes_seconds(tmp_path):
    codes = np.random.default_rng(0).choice(np.array(["0", "1", "9"]), (3000, 28))
    path = tmp_path / "a.csv"
    path.write_text("0," + ",".join(map(str, range(1, 29))) + "\n" + "".join(f"{i:04d},{','.join(row)}\n" for i, row in enumerate(codes, 1)))
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(10): table, problems = read_codes(path, tmp_path, (0, 1), (9,))
    seconds = min(time.perf_counter() - start, time.process_time() - cpu) / 10 * 328
    assert (len(table), problems) == (3000, []) and seconds < 30  # about 6 s on an idle core; far more rows than BP4D has


def test_cards_and_splits_agree():
    for name in split_names():
        split = load_split(name)
        tested = [s for fold in split.folds for s in fold]
        assert len(tested) == len(set(tested)) and name in load_dataset_manifest(split.dataset).splits
        card = make_card(split.dataset, split=split)
        assert card.folds == split.folds and not card.synthetic and card.publishable == ()


def test_problem_tables_survive_a_file(tmp_path):
    problems = [Problem("error", "x", file="a.csv", line=3), Problem("note", "y", subject="S", video="V", frame=0)]
    for rows in (problems, []):
        problems_frame(rows).to_parquet(tmp_path / "p.parquet")
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "p.parquet"), problems_frame(rows))
    assert tally(problems) == "1 error, 1 note"
