"""Checkpoints in a bucket: a real server, and between it and the client a proxy that does what networks do."""

import random
from itertools import product

import pytest
from google.api_core.exceptions import GoogleAPIError
from helpers.checkpoints import make_checkpoint
from helpers.fault_proxy import FETCHED, SENT
from helpers.lanes import fast_if

from multitask.checkpoints import gcs as gcs_objects
from multitask.checkpoints.manifest import describe, verify, write_manifest
from multitask.checkpoints.remote import (
    check_access,
    delete_checkpoint,
    download_checkpoint,
    list_checkpoints,
    prune,
    upload_checkpoint,
    upload_folder,
)
from multitask.errors import UserError
from multitask.utils import split_url

LARGE = 9 << 20  # the library sends a larger file than 8 MiB in chunks


def names(bucket):
    return sorted(blob.name for blob in bucket.list_blobs())


def is_upload(method, path):
    return method in ("POST", "PUT") and "/upload/" in path


def is_download(method, path):
    return method == "GET" and "alt=media" in path


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, expected",
    [
        ("gs://gold-bucket", ("gold-bucket", "")),
        ("gs://gs/", None),
        ("gs://gsgs/", ("gsgs", "")),
        ("gs://b.c_d-1/runs/a", ("b.c_d-1", "runs/a/")),
        ("gs://bucket//runs/a//", ("bucket", "runs/a/")),
        ("gs://", None),
        ("gs:///runs", None),
        ("gs:/bucket/runs", None),
        ("s3://bucket/runs", None),
        ("bucket/runs", None),
        ("gs://Bucket", None),
        ("gs://bucket\n", None),
        ("", None),
    ],
)
def test_a_url_is_a_bucket_and_a_prefix(url, expected):
    if expected:
        assert split_url(url) == expected
    else:
        with pytest.raises(UserError, match="write gs://BUCKET/PREFIX"):
            split_url(url)


def test_access_is_checked_without_a_trace(proxy, bucket, place):
    check_access(place)
    check_access(f"gs://{bucket.name}")
    assert names(bucket) == []
    assert {method for method, _ in proxy.requests} >= {"GET", "POST", "DELETE"}


def test_a_bucket_that_is_not_there(proxy):
    with pytest.raises(UserError, match="gs://no-such-bucket/x: the bucket no-such-bucket does not exist"):
        check_access("gs://no-such-bucket/x")


@pytest.mark.parametrize(
    "permission, hit",
    [
        ("list", lambda method, path: method == "GET" and not is_download(method, path)),
        ("create", is_upload),
        ("get", is_download),
        ("delete", lambda method, path: method == "DELETE"),
    ],
)
def test_the_missing_permission_is_named(proxy, bucket, place, monkeypatch, permission, hit):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-project")
    proxy.fault = lambda method, path: "403" if hit(method, path) else None
    with pytest.raises(UserError) as caught:
        check_access(place)
    assert f"permission storage.objects.{permission} on the bucket {bucket.name} is missing" in str(caught.value)
    assert "my-project" in str(caught.value) and "\n" not in str(caught.value)


def test_credentials_that_the_server_does_not_take(proxy, place):
    proxy.fault = lambda method, path: "401"
    with pytest.raises(UserError, match="they are no longer valid"):
        check_access(place)


def test_no_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # do not look for the metadata server of a Google machine
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    with pytest.raises(UserError, match="gs://bucket/x: no credentials for Google Cloud were found"):
        check_access("gs://bucket/x")


def test_a_server_that_is_not_there(monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    short = gcs_objects.RETRY.with_delay(initial=0.01, maximum=0.05)
    monkeypatch.setattr(
        gcs_objects, "RETRY", type("Retry", (), {"with_timeout": lambda self, _: short.with_timeout(0.2)})()
    )
    with pytest.raises(UserError, match="gs://bucket/x: Google Cloud Storage cannot be reached"):
        check_access("gs://bucket/x")


# -- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("large", [0, LARGE])
def test_there_and_back(bucket, place, tmp_path, large):
    folder = make_checkpoint(tmp_path, 500, large)
    upload_checkpoint(folder, place)
    assert f"runs/a/step-00000500/{'encoder/config.json'}" in names(bucket) and len(names(bucket)) == 6
    assert list_checkpoints(place) == list_checkpoints(place + "/") == [500]
    download_checkpoint(place, 500, tmp_path / "again" / "step-00000500")
    assert describe(tmp_path / "again" / "step-00000500") == describe(folder)
    verify(tmp_path / "again" / "step-00000500")
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["step-00000500"]


def test_the_manifest_comes_last_and_goes_first(proxy, bucket, place, tmp_path):
    upload_checkpoint(make_checkpoint(tmp_path, 500), place)
    uploads = [path for method, path in proxy.requests if is_upload(method, path)]
    assert len(uploads) == 6
    assert ["ifGenerationMatch=0" in path for path in uploads] == [False] * 5 + [True]
    proxy.requests.clear()
    delete_checkpoint(place, 500)
    deletes = [path for method, path in proxy.requests if method == "DELETE"]
    assert len(deletes) == 6 and "manifest.json" in deletes[0]
    assert names(bucket) == []
    delete_checkpoint(place, 500)


def test_what_is_there_is_not_sent_again(proxy, bucket, place, tmp_path):
    folder = make_checkpoint(tmp_path, 500)
    upload_checkpoint(folder, place)
    bucket.blob("runs/a/step-00000500/manifest.json").delete()
    bucket.blob("runs/a/step-00000500/optimizer.safetensors").upload_from_string(b"half")
    assert list_checkpoints(place) == []
    proxy.requests.clear()
    upload_checkpoint(folder, place)
    assert sum(is_upload(*request) for request in proxy.requests) == 2
    proxy.requests.clear()
    upload_checkpoint(folder, place)
    assert sum(is_upload(*request) for request in proxy.requests) == 0
    download_checkpoint(place, 500, tmp_path / "again")
    assert describe(tmp_path / "again") == describe(folder)


def test_another_checkpoint_of_the_same_step_takes_the_place(bucket, place, tmp_path):
    upload_checkpoint(make_checkpoint(tmp_path / "first", 500), place)
    second = make_checkpoint(tmp_path / "second", 500)
    upload_checkpoint(second, place)
    download_checkpoint(place, 500, tmp_path / "again")
    assert describe(tmp_path / "again") == describe(second)


def test_two_writers_do_not_mix(proxy, bucket, place, tmp_path):
    mine = make_checkpoint(tmp_path / "mine", 500)
    manifest = make_checkpoint(tmp_path / "theirs", 500) / "manifest.json"

    def they_are_faster():
        bucket.blob("runs/a/step-00000500/manifest.json").upload_from_filename(manifest)

    def just_before_the_manifest(method, path):
        is_mine = is_upload(method, path) and "ifGenerationMatch=0" in path
        return they_are_faster if is_mine else None

    proxy.fault = just_before_the_manifest
    with pytest.raises(Exception, match="412"):
        upload_checkpoint(mine, place)


def test_a_local_checkpoint_that_is_damaged_is_not_uploaded(bucket, place, tmp_path):
    folder = make_checkpoint(tmp_path, 500)
    (folder / "model.safetensors").write_bytes(bytes(3000))
    with pytest.raises(ValueError, match="model.safetensors"):
        upload_checkpoint(folder, place)
    assert list_checkpoints(place) == []
    assert "runs/a/step-00000500/model.safetensors" not in names(bucket)


def test_other_objects_are_no_checkpoints(bucket, place, tmp_path):
    for name in ("step-1/manifest.json", "step-00000001x/manifest.json", "other/step-00000002/manifest.json"):
        bucket.blob(f"runs/a/{name}").upload_from_string(b"{}")
    bucket.blob("runs/a/step-00000003/sub/manifest.json").upload_from_string(b"{}")
    bucket.blob("runs/ab/step-00000004/manifest.json").upload_from_string(b"{}")
    assert list_checkpoints(place) == []


def test_a_checkpoint_that_is_not_there(place, tmp_path):
    with pytest.raises(UserError, match="it has no whole checkpoint of step 7"):
        download_checkpoint(place, 7, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a\\..\\outside"])
def test_names_that_leave_the_folder_are_refused(bucket, place, tmp_path, monkeypatch, name):
    folder = make_checkpoint(tmp_path, 500)
    monkeypatch.setattr(
        "multitask.checkpoints.manifest.describe", lambda folder: {name: {"size": 0, "crc32c": "AAAAAA=="}}
    )
    write_manifest(folder, step=500)
    prefix = "runs/a/step-00000500/"
    bucket.blob(prefix + name).upload_from_string(b"")
    bucket.blob(prefix + "manifest.json").upload_from_filename(folder / "manifest.json")
    with pytest.raises(ValueError, match="names the file"):
        download_checkpoint(place, 500, tmp_path / "again")
    assert not (tmp_path / "again").exists() and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("damage", ["flip", "remove", "manifest"])
def test_a_damaged_copy_is_not_taken(bucket, place, tmp_path, damage):
    folder = make_checkpoint(tmp_path, 500)
    upload_checkpoint(folder, place)
    blob = bucket.blob(f"runs/a/step-00000500/{'manifest.json' if damage == 'manifest' else 'model.safetensors'}")
    content = blob.download_as_bytes()
    other = b"y" if content[-9:-8] == b"x" else b"x"  # a checksum may hold either
    blob.delete() if damage == "remove" else blob.upload_from_string(content[:-9] + other + content[-8:])
    before = make_checkpoint(tmp_path / "before", 400)
    with pytest.raises((ValueError, UserError)):
        download_checkpoint(place, 500, before)
    verify(before)


def test_a_folder_is_mirrored(proxy, bucket, place, tmp_path):
    (tmp_path / "report" / "img").mkdir(parents=True)
    (tmp_path / "report" / "index.html").write_text("<p>one")
    (tmp_path / "report" / "img" / "a.svg").write_text("<svg>")
    upload_folder(tmp_path / "report", f"{place}/report")
    (tmp_path / "report" / "index.html").write_text("<p>two")
    proxy.requests.clear()
    upload_folder(tmp_path / "report", f"{place}/report")
    assert sum(is_upload(*request) for request in proxy.requests) == 1
    blob = bucket.get_blob("runs/a/report/index.html")
    assert blob.download_as_bytes() == b"<p>two" and blob.content_type == "text/html"
    assert names(bucket) == ["runs/a/report/img/a.svg", "runs/a/report/index.html"]


@pytest.mark.slow
def test_old_checkpoints_go(bucket, place, tmp_path):
    for step in (100, 200, 300, 400, 500):
        upload_checkpoint(make_checkpoint(tmp_path, step), place)
    for step in (200, 500):
        bucket.blob(f"runs/a/step-{step:08d}/manifest.json").delete()
    asked = []

    def keep(steps):
        asked.append(steps)
        return {100, *steps[-1:]}

    prune(place, keep)
    assert asked == [[100, 300, 400]]
    assert list_checkpoints(place) == [100, 400]
    assert {name.split("/")[2] for name in names(bucket)} == {"step-00000100", "step-00000400", "step-00000500"}


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("large", "fault"), fast_if([(0, "503"), (0, "corrupt"), (LARGE, "reset after half")], product([0, LARGE], SENT))
)
def test_an_upload_survives(proxy, bucket, place, tmp_path, fault, large):
    folder = make_checkpoint(tmp_path, 500, large)
    left = [2]

    def twice(method, path):
        left[0] -= is_upload(method, path)
        return fault if is_upload(method, path) and left[0] >= 0 else None

    proxy.fault = twice
    upload_checkpoint(folder, place)
    assert proxy.injected[fault] == 2
    proxy.fault = lambda method, path: None
    download_checkpoint(place, 500, tmp_path / "again")
    assert describe(tmp_path / "again") == describe(folder)


@pytest.mark.parametrize("times", [1, 100])
def test_a_file_that_arrives_under_another_name_is_sent_again(proxy, bucket, place, tmp_path, times):
    """The request that opens an upload in parts holds the name; what damages it, no checksum of the content finds."""

    def renames(method, path):
        is_opening = method == "POST" and "uploadType=resumable" in path
        return "corrupt" if is_opening and proxy.injected.total() < times else None

    proxy.fault = renames
    folder = make_checkpoint(tmp_path, 500, LARGE)
    if times > 3:
        with pytest.raises(GoogleAPIError, match="model.safetensors was sent 3 times and is not there"):
            upload_checkpoint(folder, place)
        assert list_checkpoints(place) == []
        return
    upload_checkpoint(folder, place)
    assert proxy.injected.total() == 1 and len(names(bucket)) == 7
    download_checkpoint(place, 500, tmp_path / "again")


def test_the_manifest_survives_a_lost_answer(proxy, place, tmp_path):
    def lost(method, path):
        return "reset after all" if "ifGenerationMatch=0" in path and not proxy.injected else None

    proxy.fault = lost
    upload_checkpoint(make_checkpoint(tmp_path, 500), place)
    assert proxy.injected.total() == 1 and list_checkpoints(place) == [500]


@pytest.mark.parametrize(
    ("large", "fault"), fast_if([(0, "429"), (0, "corrupt"), (LARGE, "truncate")], product([0, LARGE], FETCHED))
)
def test_a_download_survives(proxy, place, tmp_path, fault, large):
    folder = make_checkpoint(tmp_path, 500, large)
    upload_checkpoint(folder, place)
    left = [2]

    def twice(method, path):
        left[0] -= is_download(method, path)
        return fault if is_download(method, path) and left[0] >= 0 else None

    proxy.fault = twice
    download_checkpoint(place, 500, tmp_path / "again")
    assert proxy.injected[fault] == 2
    assert describe(tmp_path / "again") == describe(folder)


def test_a_stall_ends(proxy, place, tmp_path, monkeypatch):
    monkeypatch.setattr(gcs_objects, "TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(proxy, "stall_seconds", 0.5)
    proxy.fault = lambda method, path: "stall" if is_upload(method, path) and not proxy.injected else None
    upload_checkpoint(make_checkpoint(tmp_path, 500), place)
    proxy.fault = lambda method, path: "stall" if is_download(method, path) and proxy.injected["stall"] < 2 else None
    download_checkpoint(place, 500, tmp_path / "again")
    assert proxy.injected["stall"] == 2


def test_a_server_that_damages_everything_gets_no_checkpoint(proxy, bucket, place, tmp_path):
    proxy.fault = lambda method, path: "corrupt" if is_upload(method, path) else None
    with pytest.raises(ValueError, match="what arrived has the CRC32C"):
        upload_checkpoint(make_checkpoint(tmp_path, 500), place)
    proxy.fault = lambda method, path: None
    assert list_checkpoints(place) == []


@pytest.mark.slow
@pytest.mark.drill
def test_many_faults(proxy, place, tmp_path, drill):
    """Uploads and downloads through a network in which a third of all requests goes wrong."""
    rng = random.Random(0)

    def sometimes(method, path):
        if rng.random() < 1 / 3:
            faults = SENT if is_upload(method, path) else FETCHED
            return rng.choice([fault for fault in faults if fault != "corrupt" or is_transfer(method, path)])

    def is_transfer(method, path):
        return is_upload(method, path) or is_download(method, path)

    rounds = injected = failed = 0
    wanted = drill(40, 200)
    while injected < wanted:
        rounds += 1
        folder = make_checkpoint(tmp_path, rounds, LARGE * (rounds % 3 == 0))
        proxy.fault = sometimes
        for action in (
            lambda folder=folder: upload_checkpoint(folder, place),
            lambda step=rounds: download_checkpoint(place, step, tmp_path / "again" / f"step-{step:08d}"),
        ):
            try:
                action()
            except Exception as error:  # a failure is allowed, if it is clear and leaves nothing half
                print(f"round {rounds}: {error!r}")
                failed += 1
        proxy.fault = lambda method, path: None
        upload_checkpoint(folder, place)  # what failed is tried once more at the end of a run
        for step in list_checkpoints(place):
            download_checkpoint(place, step, tmp_path / "check")
            assert describe(tmp_path / "check") == describe(tmp_path / f"step-{step:08d}")
        for again in (tmp_path / "again").glob("step-????????"):
            verify(again)
            assert describe(again) == describe(tmp_path / again.name)
        injected = proxy.injected.total()
    assert len(list_checkpoints(place)) == rounds
    drill.says(
        f"{injected} network faults in {rounds} uploads and downloads, of which {failed} failed and were whole the next "
        f"time, nothing was lost or damaged: {dict(proxy.injected)}"
    )
