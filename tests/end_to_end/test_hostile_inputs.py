"""Input made to do harm: each case is one line and an exit status, and nothing is read, written or run.

A case spoils a copy of good input, as somebody would who publishes a model or a catalogue.
"""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from ellama_jax import cli
from ellama_jax.weights.layout import find_checkpoint

SECRET = "aws_secret_access_key = not-to-be-published"


def link(place, path, target):
    """Puts a link at `path` to a file that lies outside of what is given to the verb."""
    (place / "credentials").write_text(SECRET)
    (place / path).unlink(missing_ok=True)
    (place / path).symlink_to(target)


def edit(place, path, change):
    content = json.loads((place / path).read_text())
    change(content)
    (place / path).write_text(json.dumps(content))


def name_weights(place, name):
    index = {"weight_map": {"model.norm.weight": name}}
    (place / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))


def curated(place, name):
    """A curation whose report names a file elsewhere."""
    (place / "curation").mkdir()
    report = {"files": [{"name": name, "bytes": 1, "records": 1}]}
    (place / "curation" / "curation.json").write_text(json.dumps(report))


IMPORT = ("import", "hf", "dst")
PREPARE = ("--tokenizer=base/tokenizer", "--out=w", "--window-length=32")
TRAIN = ("train", "--config=run.py", "--workdir=run")
LINKS = [
    # path of the link, where it leads, the verb, what its line names
    ("hf/chat_template.jinja", "../credentials", IMPORT, "hf/chat_template.jinja"),
    ("hf/chat_template.jinja", "{place}/credentials", IMPORT, "hf/chat_template.jinja"),
    ("hf/original", "..", IMPORT, "hf/original"),
    ("hf/config.json", "../elsewhere.json", IMPORT, "hf/config.json"),
    ("hf/notes.md", "../credentials", ("verify", "base", "hf"), "hf/notes.md"),
    ("hf/notes.md", "../credentials", ("verify", "hf", "--write-reference=r.npz"), "hf/notes.md"),
    ("hf/notes.md", "../credentials", ("evaluate", "--checkpoint=hf", "--benchmark=benchmark",
      "--tasks=category_prediction"), "hf/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials", ("export", "base", "dst", "--allow-unverified"),
     "base/tokenizer/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials",
     ("prepare", "--documents=documents.jsonl", *PREPARE), "base/tokenizer/notes.md"),
    ("base/tokenizer/notes.md", "../../credentials",
     ("merge", "--base=base", "--adapted=adapted", "--alpha=0.5", "--out=dst", "--allow-unverified"), "base/tokenizer/notes.md"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "target", "verb", "named"), LINKS)
def test_a_link_out_of_a_model_is_refused(refused, place, path, target, verb, named):
    link(place, path, target.format(place=place))
    line = refused(*verb)
    assert f"{named}: must be no link out of its directory" in line
    assert SECRET not in line


def test_links_of_a_model_to_itself_and_to_the_blobs_of_its_cache_are_followed(place):
    snapshot = place / "models--x--y" / "snapshots" / "0123abcd"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((place / "hf").iterdir())):
        os.replace(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    (snapshot / "copy.json").symlink_to("config.json")
    cli.main(["import", str(snapshot), str(place / "dst")])
    assert find_checkpoint(place / "dst").meta["provenance"]["kind"] == "import"


NAMES = [
    # how a name is given, the verb, what the line says of it
    (lambda place: name_weights(place, "../elsewhere/x.safetensors"), IMPORT, "../elsewhere/x"),
    (lambda place: name_weights(place, "/elsewhere/x.safetensors"), IMPORT, "'/elsewhere/x"),
    (lambda place: name_weights(place, 7), IMPORT, "got 7"),
    (lambda place: name_weights(place, "../x.safetensors"), ("verify", "base", "hf"), "../x"),
    (lambda place: curated(place, "documents/train/../../../credentials"),
     ("build-benchmark", "curation", "dst"), "../../../credentials"),
    (lambda place: edit(place, "windows/general-en/manifest.json",
                        lambda manifest: manifest["shards"][0].update(name="../../x.npy")),
     ("inspect", "windows/general-en"), "../../x.npy"),
    (lambda place: edit(place, "windows/general-en/manifest.json",
                        lambda manifest: manifest["shards"][0].update(name="../../x.npy")),
     (*TRAIN, "--config.model.checkpoint=base", "--config.data.windows_dir=windows"), "../../x.npy"),
]  # fmt: skip


@pytest.mark.parametrize(("give", "verb", "named"), NAMES)
def test_a_name_that_leads_out_of_its_directory_is_refused(refused, place, give, verb, named):
    give(place)
    line = refused(*verb)
    assert "must name files inside" in line and named in line


# --- words into shells and terminals -------------------------------------------------------------

ESCAPES = "\x1b]0;title\x07\x1b[2Jname\x9b31m\u202e"


def test_the_escapes_of_an_error_are_written_out(refused):
    line = refused("inspect", f"nowhere{ESCAPES}")
    assert line.isprintable() and r"\x1b]0;title\x07\x1b[2Jname\x9b31m\u202e" in line


def test_the_escapes_of_a_window_set_are_written_out(place, monkeypatch, capfd):
    monkeypatch.chdir(place)
    source = {"name": f"shop{ESCAPES}", "kind": "documents", "sha256": "0" * 64, "documents": 1}
    edit(place, "windows/general-en/manifest.json",
         lambda manifest: manifest.update(sources=[source], command=f"prepare {ESCAPES}"))  # fmt: skip
    cli.main(["inspect", "windows/general-en", "--show=1", "--tokenizer=base/tokenizer"])
    cli.main(["inspect", "windows/general-en"])
    said = capfd.readouterr().out
    assert r"shop\x1b]0;title" in said
    assert all(character.isprintable() or character in "\n\t" for character in said)


def test_a_title_of_several_lines_is_no_command(place, monkeypatch):
    from ellama_jax.experiments.sweep_commands import write_commands
    from ellama_jax.experiments.sweep_grid import Rule, Sweep, Trial

    monkeypatch.chdir(place)
    trial = Trial("a", None, ("--config=x.py", "--config.run=a b;touch made"), None, "0" * 16)
    sweep = Sweep("Rates\ntouch made\r$(touch made)", (trial,), (), {}, Rule(), False)
    (place / "bin").mkdir()
    (place / "bin" / "ellama").write_text("#!/bin/sh\n")
    (place / "bin" / "ellama").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    write_commands(sweep, "runs; touch made", place / "go.sh")
    subprocess.run(["bash", "go.sh"], check=True)
    assert not (place / "made").exists()
    (place / "slice.env").write_text("NAME=x\nWORKDIR=gs://b/x\nCONFIG=x\n")
    trial = dataclasses.replace(trial, arguments=("--config=x", "--config.run=a\nNAME=other"))
    sweep = dataclasses.replace(sweep, trials=(trial,))
    with pytest.raises(ValueError, match="values of one line"):
        write_commands(sweep, "gs://b/runs", place / "go.sh", env=place / "slice.env")


def test_every_locked_package_is_held_by_its_hashes():
    lock = (Path(__file__).parents[2] / "requirements.lock").read_text()
    pins = re.findall(r"^\S+==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert len(pins) > 200
    assert [pin.split()[0] for pin in pins if "--hash=sha256:" not in pin] == []
    installed = [pin.split("==")[0] for pin in pins if "sys_platform == 'never'" not in pin]
    assert "chardet" not in installed  # LGPL
