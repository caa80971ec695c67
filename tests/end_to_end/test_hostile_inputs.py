"""Input made to do harm: each case is one line and an exit status, and nothing is read, written or run.

A case spoils a copy of good input, as somebody would who publishes a model or a catalogue.
"""

import json
import os

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
