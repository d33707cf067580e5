"""Pictures and videos by frame number: every picture shows its own number, every fault is a sentence, nothing shifts and nothing is lost."""

import base64
import os
import pickle
import resource
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from multiprocessing import get_context

import cv2
import numpy as np
import pytest
from PIL import Image

from au_study.datasets import media as module
from au_study.datasets.media import Frame, ImageFolder, VideoFile, ZipImages, decode_image, open_media, scan_folder
from au_study.datasets.problems import DatasetError

# Twelve grey pictures, the k-th of brightness 20 + 16 k, as MPEG-4 with B-frames in an AVI: there FFmpeg's time stamps are one frame late. OpenCV cannot write
# such a file; made with: ffmpeg -f lavfi -i "color=black:s=16x16:r=25:d=0.48,format=gray,geq=lum='20+16*N'" -c:v mpeg4 -bf 2 -g 4
B_FRAMES = ("c-jl{baP{qWMFU%^HlKh3=XjnVqnNfDauJK%gnG~U|?{V!@#g2kpT<@I2jmtAWQ~EhzJlefH67%ne_lDQCw1#1H@pn$}&@m-FyQ~kkx_Ak%Y2AW*Y+We;|O#gKPlmPtyRhHK2A0fb~f*fX!mYwA(Ax"
            "&szehhy}_wFi1&e7zLwX6pVsVFbYP&C>RB!U=)mkQ7{Td!H5E71w{oeNPN)v17ci(5s8fu$2HCY8f#zyD$GyG%>kl}A0s$iL1FQOc{F{Ef>AIM0cgzk6R<4I%`eLYjky|vMHx4I1QJ_U3PTE1Mg@*5"
            "y&Mc@8CsY`B<z9w%?twUKx&&nLSR$l_V)~=>lAzt*fQ<@ey~mnh|X;j9;D1SsNw&8@Pqw(_5=U-$TR=@jx0Yh0VL1Ca`1zKF#CZ9A9*H5bCA3NNj3{71WwNVjco3u1pM|+dO!_(MIHq9N7o^nI~nR<"
            "#}D>zf%a|z+It;YehS3D%s_kjf%e+SGckN8J)}h+1h%(9Lz)9>^3;Ts`<W>fh6flRBkiDC5;XE|h{U%;;)8Tm0I>uTe+CjCq<#m8jU@j8O}zjks(J%PRP`B*sOme=)URMfb<ZOpALJhZC``xC")


def painted(k, size=(48, 64)):
    "A picture that shows k in binary."
    image = np.full((48, 64, 3), 40, np.uint8)
    for bit in range(12): image[bit // 6 * 20:bit // 6 * 20 + 18, bit % 6 * 10:bit % 6 * 10 + 9] = 230 if k >> bit & 1 else 10
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST)


def shown(image):
    "The number that a picture shows."
    image = cv2.resize(image, (64, 48), interpolation=cv2.INTER_AREA)
    return sum(int(image[b // 6 * 20 + 5:b // 6 * 20 + 13, b % 6 * 10 + 2:b % 6 * 10 + 7].mean() > 120) << b for b in range(12))


def film(path, pictures, codec="MJPG", fps=25, size=(48, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size[::-1])
    for k in pictures: writer.write(painted(k, size))
    writer.release()
    return path


def coded(image, suffix=".jpg"): return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def saved(image, **options):
    buffer = BytesIO()
    image.save(buffer, **options)
    return buffer.getvalue()


def told(media): return [(p.severity, p.message) for p in media.problems]


def damage(path, target, k):
    "A copy of a video whose k-th packet is zero."
    data, packets = bytearray(path.read_bytes()), module._capture(path, packets=True)
    for _ in range(k + 1): packets.grab()
    packet = packets.retrieve()[1].tobytes()
    at = data.find(packet)
    assert at > 0
    data[at:at + len(packet)] = bytes(len(packet))
    return write(target, bytes(data))


# --- single pictures ---------------------------------------------------------------------------------------------------------------

COLOUR = np.dstack([np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1)), np.full((48, 64), 60, np.uint8), np.tile(np.linspace(200, 0, 64).astype(np.uint8), (48, 1))])
GREY = COLOUR[..., 0]


@pytest.mark.parametrize("data, expected, off", [
    (coded(COLOUR, ".png"), COLOUR, 0), (coded(COLOUR, ".bmp"), COLOUR, 0), (coded(COLOUR), COLOUR, 4),
    (coded(GREY, ".png"), np.dstack([GREY] * 3), 0), (coded(GREY), np.dstack([GREY] * 3), 2),
    (coded(GREY.astype(np.uint16) * 257, ".png"), np.dstack([GREY] * 3), 0),
    (saved(Image.fromarray(np.dstack([COLOUR, np.full((48, 64), 90, np.uint8)])), format="PNG"), COLOUR, 0),
    (saved(Image.fromarray(COLOUR).convert("CMYK"), format="JPEG", quality=95), COLOUR, 6),
    (saved(Image.fromarray(COLOUR).quantize(256), format="PNG"), COLOUR, 12),
    (saved(Image.fromarray(COLOUR), format="JPEG", quality=95, progressive=True), COLOUR, 4),
], ids=["png", "bmp", "jpg", "grey png", "grey jpg", "16-bit png", "rgba png", "cmyk jpg", "palette png", "progressive jpg"])
def test_pictures_of_all_kinds_become_rgb(data, expected, off):
    image, problem = decode_image(data)
    assert problem is None and image.dtype == np.uint8 and image.shape == (48, 64, 3) and image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).mean() <= off


def test_a_camera_tag_does_not_turn_a_picture():
    tag = Image.Exif()
    tag[0x0112] = 6  # turn by 90 degrees
    assert decode_image(saved(Image.fromarray(COLOUR), format="JPEG", exif=tag))[0].shape == (48, 64, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_a_picture_that_was_cut_off_is_never_half_a_picture(suffix):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    data = coded(noise, suffix)
    for length in [0, 1, 2, 5, 11, 20, 100, *range(150, len(data) - 2, 97), len(data) - 2]:
        image, problem = decode_image(data[:length])
        assert image is None and problem, length
    zeros = data[:len(data) // 2] + bytes(len(data) - len(data) // 2)  # the disk had the size, not the content
    assert decode_image(zeros)[0] is None or suffix == ".bmp"


def test_the_end_mark_of_a_thumbnail_does_not_count():
    whole = coded(COLOUR)
    thumb = coded(COLOUR[::4, ::4])
    tagged = whole[:2] + b"\xff\xe1" + (len(thumb) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumb + whole[2:]
    assert decode_image(tagged)[0] is not None
    assert "without end mark" in decode_image(tagged[:-200])[1]


@pytest.mark.parametrize("data", [b"<html>not here</html>", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 500, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_named(data):
    image, problem = decode_image(data)
    assert image is None and ("cannot be decoded" in problem or "cut off" in problem) and "\n" not in problem


# --- folders -----------------------------------------------------------------------------------------------------------------------

def test_names_are_numbers_whatever_their_padding(tmp_path):
    at = tmp_path / "übung 1 数据/T 1"
    for name, k in (("7.jpg", 7), ("0008.JPG", 8), ("00009.jpeg", 9), ("010.PNG", 10), ("12.bmp", 12)): write(at / name, coded(painted(k), name[-4:].lower().replace("jpeg", ".jpg")))
    write(at / "13.jpg", coded(painted(13), ".png"))  # a PNG that is called JPEG
    folder = ImageFolder(at, root=tmp_path)
    assert folder.numbers.tolist() == [7, 8, 9, 10, 12, 13] and folder.numbers.dtype == np.int64 and folder.problems == []
    assert folder.name == "übung 1 数据/T 1"
    assert [(f.number, shown(f.image)) for f in folder.read()] == [(k, k) for k in (7, 8, 9, 10, 12, 13)]
    gap = list(folder.read([13, 11, 7, 11]))
    assert [(f.number, f.image is None, f.missing) for f in gap] == [(7, False, False), (11, True, True), (13, False, False)]
    assert gap[1].problem.startswith("no such image")


def test_two_files_of_one_number_are_an_error_and_neither_is_used(tmp_path):
    for name in ("007.jpg", "7.jpg", "8.png", "8.jpg", "9.jpg"): write(tmp_path / "T1" / name, coded(painted(5)))
    folder = ImageFolder(tmp_path / "T1", tmp_path)
    assert [p.frame for p in folder.problems if p.severity == "error"] == [7, 8]
    assert "007.jpg, 7.jpg" in folder.problems[0].message and folder.problems[0].file == "T1/007.jpg"
    frames = list(folder.read())
    assert [(f.number, f.image is None, f.missing) for f in frames] == [(7, True, False), (8, True, False), (9, False, False)]


def test_links_in_circles_and_to_nothing(tmp_path):
    write(tmp_path / "T1/1.jpg", coded(painted(1)))
    (tmp_path / "T1/2.jpg").symlink_to("2.jpg")
    (tmp_path / "T1/3.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "T1/4.jpg").symlink_to(tmp_path / "T1/1.jpg")  # a good link
    (tmp_path / "T1/up").symlink_to(tmp_path)
    folder = ImageFolder(tmp_path / "T1", tmp_path)
    assert folder.numbers.tolist() == [1, 4] and shown(next(folder.read([4])).image) == 1
    assert [(p.severity, p.file) for p in folder.problems] == [("error", "T1/2.jpg"), ("error", "T1/3.jpg"), ("warning", "T1/up")]


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path / "T1/1.jpg", coded(painted(1)))

    def refuse(path): raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module.os, "scandir", refuse)
    folder = ImageFolder(tmp_path / "T1", tmp_path)
    assert told(folder) == [("error", "The folder cannot be read: Permission denied.")] and str(tmp_path) not in str(folder.problems[0])
    assert [f.missing for f in folder.read([1])] == [True]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_picture_that_may_not_be_read(tmp_path):
    write(tmp_path / "T1/1.jpg", coded(painted(1))).chmod(0)
    frame, = ImageFolder(tmp_path / "T1").read()
    assert frame.image is None and frame.problem == "1.jpg: cannot be read: Permission denied"


def test_a_picture_that_vanishes_after_it_was_listed(tmp_path):
    for k in (1, 2): write(tmp_path / f"T1/{k}.jpg", coded(painted(k)))
    folder = ImageFolder(tmp_path / "T1")
    assert len(folder) == 2
    (tmp_path / "T1/1.jpg").unlink()
    a, b = folder.read()
    assert a.image is None and "1.jpg: cannot be read" in a.problem and not a.missing and shown(b.image) == 2


def test_names_that_are_no_numbers_are_passed_over(tmp_path):
    for name in ("1.jpg", "._1.jpg", "Thumbs.db", "x2.jpg", "3 (1).jpg", "٣.jpg", "9" * 30 + ".jpg", "4.jpg.part", "-5.jpg", "6.5.jpg"): write(tmp_path / "T1" / name, b"x")
    folder = ImageFolder(tmp_path / "T1")
    assert folder.numbers.tolist() == [1] and [(p.severity, p.message[:7]) for p in folder.problems] == [("warning", "6 files"), ("note", "3 files")]  # a picture may be lost, the rest is litter


def test_reduced_decoding_says_what_it_did(tmp_path):
    write(tmp_path / "T1/1.jpg", coded(painted(1, (480, 640)))); write(tmp_path / "T1/2.png", coded(painted(2, (480, 640)), ".png"))
    frames = list(ImageFolder(tmp_path / "T1").read(reduce=lambda n: 4))
    assert [(f.image.shape, f.reduced, shown(f.image)) for f in frames] == [((120, 160, 3), 4, 1), ((480, 640, 3), 1, 2)]


# --- zips --------------------------------------------------------------------------------------------------------------------------

def test_a_zip_is_read_in_place(tmp_path):
    path = tmp_path / "ein zip.ZIP"
    with zipfile.ZipFile(path, "w") as z:
        for k in (1, 2, 10): z.writestr(f"S/T1/{k:05d}.JPG", coded(painted(k)))
        z.writestr("S/T1/4.jpg", coded(painted(4))[:700]); z.writestr("S/T2/1.jpg", coded(painted(9)))
        for evil in ("S/T1/../../../etc/7.jpg", "/8.jpg", "C:/9.jpg"): z.writestr(evil, coded(painted(7)))
    before = {p for p in tmp_path.rglob("*")}
    one = pickle.loads(pickle.dumps(ZipImages(path, "S/T1", tmp_path)))
    assert one.numbers.tolist() == [1, 2, 4, 10]
    assert [(f.number, f.image is None or shown(f.image)) for f in one.read()] == [(1, 1), (2, 2), (4, True), (10, 10)]
    assert sum("leads out of it" in p.message for p in one.problems) == 3 and all(p.severity == "error" for p in one.problems)
    assert [shown(f.image) for f in ZipImages(path, "S/T2").read()] == [9]
    assert {p for p in tmp_path.rglob("*")} == before  # nothing was extracted


def test_broken_zips(tmp_path):
    whole = tmp_path / "a.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as z:
        for k in (1, 2, 3): z.writestr(f"{k}.bmp", coded(painted(k), ".bmp"))
    data = whole.read_bytes()
    for name, content, why in (("cut.zip", data[:-100], "no zip, or cut off"), ("empty.zip", b"", "empty (0 bytes)"), ("page.zip", b"<html>", "no zip, or cut off")):
        media = ZipImages(write(tmp_path / name, content), root=tmp_path)
        assert len(media) == 0 and why in media.problems[0].message and media.problems[0].file == name
        assert [f.missing for f in media.read([1])] == [True] and list(media.read()) == []
    assert "there is nothing there" in ZipImages(tmp_path / "gone.zip").problems[0].message
    with zipfile.ZipFile(whole) as z: at = z.getinfo("2.bmp").header_offset + 60
    torn = bytearray(data)
    torn[at:at + 40] = bytes(40)
    frames = list(ZipImages(write(tmp_path / "torn.zip", bytes(torn))).read())
    assert [f.image is None for f in frames] == [False, True, False] and "2.bmp: cannot be read" in frames[1].problem


def test_a_zip_that_was_replaced_is_listed_anew(tmp_path):
    path = tmp_path / "a.zip"
    for k in (1, 2):
        with zipfile.ZipFile(path, "w") as z:
            for i in range(k): z.writestr(f"{i}.jpg", coded(painted(i)))
        assert len(ZipImages(path)) == k


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_in_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for name, k in (("T1/1.jpg", 1), ("T1/1.jpg", 1), ("T1/2.jpg", 2), ("T1\\2.jpg", 5), ("T1/3.jpg", 3), ("T2/3.jpg", 4)): z.writestr(name, coded(painted(k)))
    media = ZipImages(tmp_path / "a.zip", "T1")
    assert [(f.number, None if f.image is None else shown(f.image)) for f in media.read()] == [(1, 1), (2, None), (3, 3)]  # neither of two that differ
    assert sorted(p.severity for p in media.problems) == ["error", "note"] and "2 files claim frame 2" in str(media.problems) and "1 name more than once" in str(media.problems)
    assert ZipImages(tmp_path / "a.zip", "T2").problems == []


# --- videos ------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, codec", [("a b.AVI", "MJPG"), ("ü.avi", "XVID"), ("数.mp4", "mp4v"), ("c.MOV", "mp4v"), ("d.mkv", "MJPG")])
@pytest.mark.parametrize("first", [0, 1])
def test_frame_first_plus_k_shows_k(tmp_path, name, codec, first):
    video = VideoFile(film(tmp_path / "Ordner mit Raum" / name, range(40), codec, fps=29.97), first=first, root=tmp_path)
    assert video.problems == [] and len(video) == 40 and abs(video.fps - 29.97) < .01
    assert [(f.number - first, round(f.time * 29.97)) for f in video.read()] == [(k, k) for k in range(40)]
    assert [shown(f.image) for f in video.read()] == list(range(40))
    some = [first + 39, first, first + 13, first + 13]
    assert [(f.number, shown(f.image)) for f in video.read(some)] == [(first, 0), (first + 13, 13), (first + 39, 39)]
    outside = list(video.read([first - 1, first + 40]))
    assert all(f.missing and f.image is None and "has frames" in f.problem for f in outside)


def test_pictures_are_rgb(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "red.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 255), np.uint8)); writer.release()
    image = next(VideoFile(tmp_path / "red.avi").read()).image
    assert image.dtype == np.uint8 and image[24, 32, 0] > 200 and image[24, 32, 2] < 60


def test_time_stamps_that_are_late_do_not_shift_numbers(tmp_path):
    video = VideoFile(write(tmp_path / "b.avi", zlib.decompress(base64.b85decode(B_FRAMES))), first=1)
    assert video.numbers.tolist() == list(range(1, 13)) and video.problems == []
    assert [round((f.image.mean() - 20) / 16) for f in video.read()] == list(range(12))
    assert [round((f.image.mean() - 20) / 16) for f in video.read([12, 5])] == [4, 11]
    for k in range(12):  # whatever is lost, what is left has its own number
        frames = list(VideoFile(damage(video.path, tmp_path / "broken.avi", k)).read())
        assert [f.number for f in frames] == list(range(1, 13)) and any(f.image is None for f in frames), k
        assert all(abs(f.image.mean() - 20 - 16 * (f.number - 1)) < 5 for f in frames if f.image is not None), k


@pytest.mark.parametrize("name, codec, k", [("a.avi", "MJPG", 0), ("a.avi", "MJPG", 20), ("a.avi", "MJPG", 39), ("b.avi", "XVID", 1), ("b.avi", "XVID", 20),
                                            ("c.mp4", "mp4v", 20), ("c.mp4", "mp4v", 39)])
def test_a_damaged_picture_costs_itself_and_shifts_nothing(tmp_path, name, codec, k):
    broken = VideoFile(damage(film(tmp_path / name, range(40), codec), tmp_path / f"broken {name}", k), first=1, root=tmp_path)
    frames = list(broken.read())
    assert [f.number for f in frames] == list(range(1, 41))
    lost = [f.number - 1 for f in frames if f.image is None]
    assert lost[0] == k and (len(lost) == 1 if codec == "MJPG" else lost == list(range(k, min(40, (k // 12 + 1) * 12))))  # up to the next key picture
    assert all(shown(f.image) == f.number - 1 for f in frames if f.image is not None)
    assert all(f"frame {f.number} of broken {name}" in f.problem and not f.missing for f in frames if f.image is None)
    wanted = [k + 1, 40]
    assert [f.number for f in broken.read(wanted)] == sorted(set(wanted))


def test_a_frame_that_the_recorder_dropped_shifts_nothing(tmp_path):
    data = bytearray(film(tmp_path / "a.avi", range(40)).read_bytes())
    index = data.rfind(b"idx1")
    for k in (10, 25):
        entry = index + 8 + 16 * k
        at = data.find(b"movi") + int.from_bytes(data[entry + 8:entry + 12], "little")
        size = int.from_bytes(data[at + 4:at + 8], "little")
        data[at + 4:at + 16] = bytes(4) + b"JUNK" + (size + size % 2 - 8).to_bytes(4, "little")
        data[entry + 12:entry + 16] = bytes(4)
    video = VideoFile(write(tmp_path / "dropped.avi", bytes(data)), first=1)
    assert np.setdiff1d(np.arange(1, 41), video.numbers).tolist() == [11, 26]
    assert [shown(f.image) for f in video.read()] == (video.numbers - 1).tolist()
    assert told(video) == [("warning", "Frames without a picture, dropped by the recorder (2 of 40): 11, 26.")]
    assert next(video.read([11])).missing


@pytest.mark.parametrize("share", [.3, .6, .9])
def test_an_avi_that_was_cut_off_says_so_and_its_last_picture_is_not_used(tmp_path, share):
    data = film(tmp_path / "a.avi", range(40)).read_bytes()
    video = VideoFile(write(tmp_path / "cut.avi", data[:int(len(data) * share)]), first=1, root=tmp_path)
    frames = list(video.read())
    assert told(video) == [("error", f"The video was cut off: its header announces 40 frames, {len(video) - 1} of them whole.")]
    assert 5 < len(frames) < 40 and [f.image is None for f in frames] == [False] * (len(frames) - 1) + [True]
    assert all(shown(f.image) == f.number - 1 for f in frames[:-1])


def test_files_that_are_no_videos(tmp_path):
    whole = film(tmp_path / "a.mp4", range(40), "mp4v").read_bytes()
    (tmp_path / "loop.avi").symlink_to(tmp_path / "loop.avi")
    (tmp_path / "folder.avi").mkdir()
    for name, content, why in (("empty.avi", b"", "is empty (0 bytes)"), ("cut.mp4", whole[:len(whole) // 2], "index of this MP4 is missing"), ("page.avi", b"<html></html>", "opened as a video"),
                               ("gone.avi", None, "there is nothing there"), ("loop.avi", None, "leads in a circle"), ("folder.avi", None, "this is a folder")):
        if content is not None: write(tmp_path / name, content)
        video = VideoFile(tmp_path / name, root=tmp_path)
        problem, = video.problems
        assert problem.severity == "error" and why in problem.message and problem.file == name and str(tmp_path) not in str(problem)
        assert len(video) == 0 and video.fps is None and list(video.read()) == []
        frame, = video.read([5])
        assert frame.missing and why in frame.problem


def test_a_video_held_upright_by_its_note(tmp_path):
    data = bytearray(film(tmp_path / "a.mp4", range(5), "mp4v").read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # the matrix of the first track
    data[at:at + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30))
    assert next(VideoFile(write(tmp_path / "turned.mp4", bytes(data))).read()).image.shape == (64, 48, 3)


def test_nothing_is_printed_about_broken_files(tmp_path):
    write(tmp_path / "empty.avi", b""); write(tmp_path / "page.mp4", b"<html>" * 50)
    damage(film(tmp_path / "c.mp4", range(30), "mp4v"), tmp_path / "broken.mp4", 5)
    code = ("import sys, pathlib\nfrom au_study.datasets.media import VideoFile, decode_image\n"
            "for p in sorted(pathlib.Path(sys.argv[1]).iterdir()): list(VideoFile(p).read())\ndecode_image(b'x' * 50); decode_image(b'BM' + bytes(90))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _numbers_shown(media): return [(f.number, shown(f.image)) for f in media.read()]


def test_media_go_to_another_process(tmp_path):
    write(tmp_path / "T1/3.jpg", coded(painted(3)))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z: z.writestr("4.png", coded(painted(4), ".png"))
    video = VideoFile(film(tmp_path / "a.avi", range(3)), first=1)
    assert len(video) == 3  # looked at before it travels
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(_numbers_shown, [ImageFolder(tmp_path / "T1"), ZipImages(tmp_path / "a.zip"), video]))
    assert found == [[(3, 3)], [(4, 4)], [(1, 0), (2, 1), (3, 2)]]


def test_a_long_video_needs_no_more_memory_than_a_short_one(tmp_path):
    code = ("import sys, resource\nfrom au_study.datasets.media import VideoFile\n"
            "n = sum(f.image is not None for f in VideoFile(sys.argv[1]).read())\nprint(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)")
    peak = {}
    for n in (40, 400):
        path = film(tmp_path / f"{n}.avi", range(n), size=(480, 640))
        counted, kb = map(int, subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout.split())
        assert counted == n
        peak[n] = kb
    assert peak[400] - peak[40] < 30_000  # 360 more pictures would be 330,000 KB
    assert resource.RUSAGE_SELF == 0


def test_a_reader_may_stop_early(tmp_path):
    video = VideoFile(film(tmp_path / "a.avi", range(30)))
    stream = video.read()
    assert next(stream).number == 1
    stream.close()
    assert len(list(video.read())) == 30


# --- own media ---------------------------------------------------------------------------------------------------------------------

def test_own_media(tmp_path):
    for k in (9, 10, 11): write(tmp_path / f"trip/IMG_{k:04d}.JPG", coded(painted(k)))
    assert [(f.number, shown(f.image)) for f in open_media(tmp_path / "trip").read()] == [(9, 9), (10, 10), (11, 11)]
    write(tmp_path / "trip/cover.png", coded(painted(1), ".png"))
    assert [(f.number, shown(f.image)) for f in open_media(tmp_path / "trip", first=0).read()] == [(0, 1), (1, 9), (2, 10), (3, 11)]
    with zipfile.ZipFile(tmp_path / "trip.zip", "w") as z:
        for k in (2, 1): z.writestr(f"trip/{k}.jpg", coded(painted(k)))
        z.writestr("__MACOSX/trip/._1.jpg", b"x"); z.writestr("notes.txt", b"x")
    assert [shown(f.image) for f in open_media(tmp_path / "trip.zip").read()] == [1, 2]
    assert [(f.number, shown(f.image)) for f in open_media(write(tmp_path / "me.jpg", coded(painted(6)))).read()] == [(1, 6)]
    assert [f.number for f in open_media(film(tmp_path / "v.mp4", range(3), "mp4v"), first=0).read()] == [0, 1, 2]
    (tmp_path / "nothing").mkdir()
    film(tmp_path / "only/v.mp4", range(3), "mp4v")
    for path, why in (("gone", "There is no 'gone'"), ("nothing", "holds no pictures"), ("only", r"but 1 videos \(v.mp4\)")):
        with pytest.raises(DatasetError, match=why): open_media(tmp_path / path)


def test_scan_folder_and_frame(tmp_path):
    write(tmp_path / "b/x.txt", b""); (tmp_path / "a").mkdir()
    assert scan_folder(tmp_path) == ([], ["a", "b"], [])
    assert not Frame(1, None, "cut off").missing and Frame(1, None, "no such image in T1").missing and not Frame(1, painted(1)).missing
