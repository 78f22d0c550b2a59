"""The loopback hub, by its protocol and by the libraries that fetch from it."""

import json
import urllib.error
import urllib.request

import pytest


def ask(hub, path, *, method="GET", **headers):
    request = urllib.request.Request(hub.endpoint + path, method=method, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        answer = error
    return answer.status, answer.headers, answer.read()


def test_a_file_has_size_etag_and_commit_by_head_too(hub):
    info = json.loads(ask(hub, "/api/models/owner/model")[2])
    assert [one["rfilename"] for one in info["siblings"]] == ["config.json", "sub/notes.txt"]
    got, head = (ask(hub, "/owner/model/resolve/main/sub/notes.txt", method=m) for m in ("GET", "HEAD"))
    assert got[2] == b"0123456789" and head[2] == b""
    for status, headers, _ in (got, head):
        assert status == 200 and headers["Content-Length"] == "10"
        assert headers["X-Repo-Commit"] == info["sha"] and len(info["sha"]) == 40
        # sha1 of the ten digits
        assert headers["ETag"] == '"87acec17cd9dcd20a716cc2cf67417b71c8a7016"'


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"), ("bytes=5-99", 206, b"56789"),
     ("bytes=10-", 416, b""), ("lines=1-2", 200, b"0123456789")],
)  # fmt: skip
def test_a_range_of_a_file(hub, asked, status, content):
    answer = ask(hub, "/owner/model/resolve/main/sub/notes.txt", Range=asked)
    assert (answer[0], answer[2]) == (status, content)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/api/models/owner/none", 404, "RepoNotFound"), ("/api/models/owner/..", 404, "RepoNotFound"),
     ("/api/datasets/owner/model", 404, "RepoNotFound"),
     ("/owner/model/resolve/v2/config.json", 404, "RevisionNotFound"),
     ("/owner/model/resolve/main/none", 404, "EntryNotFound"),
     ("/owner/model/resolve/main/../../../datasets/owner/data/README.md", 404, "EntryNotFound"),
     ("/datasets/owner/secret/resolve/main/train.jsonl", 401, "GatedRepo"), ("/elsewhere", 404, None)],
)  # fmt: skip
def test_errors_carry_the_hubs_code(hub, path, status, code):
    answer = ask(hub, path)
    assert (answer[0], answer[1]["X-Error-Code"]) == (status, code)


def test_a_tree_lists_one_level_or_all(hub):
    def tree(query=""):
        return [one["path"] for one in json.loads(ask(hub, f"/api/models/owner/model/tree/v1.0{query}")[2])]

    assert tree() == ["config.json", "sub"]
    assert tree("?recursive=True") == ["config.json", "sub", "sub/notes.txt"]
    assert tree("/sub") == ["sub/notes.txt"]


def test_a_model_is_fetched_by_branch_tag_and_commit_into_a_cache_of_its_own(hub, python, tmp_path):
    commit = hub.repository("models", "owner/model").commit
    paths = python(
        "from huggingface_hub import snapshot_download\n"
        f"for revision in (None, 'v1.0', 'a/branch', {commit!r}):\n"
        "    print(snapshot_download('owner/model', revision=revision))"
    ).splitlines()
    assert len(set(paths)) == 1 and paths[0].endswith(commit)
    assert paths[0].startswith(str(tmp_path / "cache"))
    said = python(
        "from huggingface_hub import snapshot_download, errors\n"
        "try: snapshot_download('owner/model', revision='v9')\n"
        "except errors.RevisionNotFoundError: print('refused')"
    )
    assert said == "refused"


def test_a_data_set_is_fetched_by_name_and_configuration(hub, python):
    said = python("import datasets; print(datasets.load_dataset('owner/data', 'main', split='train')['q'][:])")
    assert said == "['one', 'two']"
    assert any(line.startswith("GET /datasets/owner/data/resolve/") for line in hub.asked)


CHECK = """
from cfutils.data import hub_access
from cfutils.errors import UserError
try:
    hub_access.check([hub_access.Repository({0!r}, {1!r}, {2!r})])
    print('readable')
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "name", "revision", "said"),
    [("model", "owner/model", "v1.0", "readable"), ("dataset", "owner/data", None, "readable"),
     ("model", "owner/model", "v9", "model owner/model has no revision 'v9'"),
     ("model", "owner/none", None, "model owner/none is not on the hub, or private: check the name"),
     ("dataset", "owner/secret", None, "dataset owner/secret is gated: accept its terms at http")],
)  # fmt: skip
def test_what_cannot_be_fetched_is_refused_with_the_fix(python, kind, name, revision, said):
    assert python(CHECK.format(kind, name, revision)).startswith(said)


def test_a_token_opens_a_gated_data_set(python):
    assert python(CHECK.format("dataset", "owner/secret", None), HF_TOKEN="hf_any") == "readable"


def test_a_hub_that_does_not_answer_is_named(python):
    said = python(CHECK.format("dataset", "owner/data", None), HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("http://127.0.0.1:9 cannot be asked for owner/data") and "HF_HUB_OFFLINE=1" in said
