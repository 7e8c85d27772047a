"""Any damage to a checkpoint is found."""

import json

import pytest

from multitask.checkpoints.manifest import crc32c_of, read_manifest, verify, write_manifest


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "step-00000005"
    (folder / "encoder").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "encoder" / "config.json").write_text('{"hidden_size": 16}')
    (folder / "empty").write_bytes(b"")
    write_manifest(folder, step=5, config_digest="é", versions={"torch": "2"})
    return folder


def test_a_manifest_says_what_is_there(folder):
    verify(folder)
    manifest = read_manifest(folder)
    assert (manifest["step"], manifest["config_digest"]) == (5, "é")
    assert manifest["files"].keys() == {"model.safetensors", "encoder/config.json", "empty"}
    assert manifest["files"]["empty"] == {"size": 0, "crc32c": "AAAAAA=="}


def test_the_checksum_is_that_of_the_cloud(tmp_path):
    (tmp_path / "numbers").write_text("123456789")
    assert crc32c_of(tmp_path / "numbers") == "4waSgw=="  # 0xE3069283, the check value of CRC-32C/iSCSI


def test_every_flip_truncation_and_removal_is_found(folder):
    tried = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        flips = [content[:n] + bytes([byte ^ 1 << n % 8]) + content[n + 1 :] for n, byte in enumerate(content)]
        for damaged in (*flips, *(content[:n] for n in range(len(content))), content + b"\n", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            tried += 1
            with pytest.raises(ValueError, match=path.name):
                verify(folder)
        path.write_bytes(content)
        verify(folder)
    assert tried > 1000


@pytest.mark.parametrize(
    "name",
    ["../model", "/etc/passwd", "a/../../b", "a\\b", "..", ".", "", "a//b", "a/", "./a", "manifest.json", "a\0"],
)
def test_names_that_leave_the_folder_are_refused(folder, name, monkeypatch):
    monkeypatch.setattr(
        "multitask.checkpoints.manifest.describe", lambda folder: {name: {"size": 0, "crc32c": "AAAAAA=="}}
    )
    write_manifest(folder, step=5)
    assert name in json.loads((folder / "manifest.json").read_text())["files"]
    with pytest.raises(ValueError, match="names the file"):
        read_manifest(folder)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"files": 3}', '{"files": {"a": 1}}', "[" * 100_000])
def test_what_is_no_manifest_is_damaged(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        verify(folder)
