"""Pushing a checkpoint to the Hugging Face Hub, model card included, in one commit.

Owns what is uploaded and what is refused. The repository ends up holding exactly the checkpoint,
so that a download verifies, beside the card and what the Hub itself puts there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thinkgate.checkpoint import load_checkpoint
from thinkgate.errors import CheckpointError, ConfigError, MissingDependencyError
from thinkgate.model_card import model_card
from thinkgate.provenance import verify
from thinkgate.provenance.keys import PublicKey

__all__ = ["CARD", "Upload", "prepare", "push"]

CARD = "README.md"
THE_HUBS = (CARD, ".gitattributes")


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes to the Hub."""

    folder: Path
    repository: str
    files: tuple[str, ...]
    """Of the folder, by their names in it."""

    card: str
    """README.md there; no file of the folder, whose signature it would break."""


def prepare(
    folder: Path, repository: str, keys: Sequence[PublicKey] = (), *, allow_ungated: bool = False
) -> Upload:
    """Verify `folder` and write its card; nothing leaves this machine.

    CheckpointError unless one of `keys` vouches for it all, or `allow_ungated`; the card says so.
    """
    try:
        from huggingface_hub.utils import HFValidationError, validate_repo_id
    except ImportError as error:
        raise MissingDependencyError(
            "pushing needs huggingface_hub, which is not installed; pip install 'thinkgate[hub]'"
        ) from error
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise ConfigError(f"'{repository}' is no name of a repository: use USER/NAME") from error
    if "/" not in repository:
        raise ConfigError(f"'{repository}' names no user or organisation: use USER/{repository}")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    report = verify(folder, keys)
    if allow_ungated and report.refused:
        checkpoint, decision, signer = report.checkpoint or load_checkpoint(folder), None, None
    else:
        try:
            checkpoint, decision, signer = report.require()
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; --allow-ungated pushes it, and its card says that it is not gated"
            ) from error
    files = tuple(
        sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    )
    if CARD in files:
        raise CheckpointError(
            f"{folder / CARD} is part of the model, and the Hub wants the model card there; train "
            "again without it"
        )
    return Upload(folder, repository, files, model_card(checkpoint, decision, signer, repository))


def push(upload: Upload, *, public: bool = False) -> str:
    """Upload it all, to a repository that is made private unless `public`; its address.

    The token is the Hub client's own (`hf auth login`, or HF_TOKEN). CheckpointError when the Hub
    refuses or cannot be reached: the checkpoint stays where it is.
    """
    import httpx
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, name = HfApi(), upload.repository
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        there = {file.rfilename for file in api.model_info(name).siblings or ()}
        commit = api.create_commit(
            name,
            [
                CommitOperationAdd(CARD, upload.card.encode()),
                *(CommitOperationAdd(file, upload.folder / file) for file in upload.files),
                *map(CommitOperationDelete, sorted(there - {*upload.files, *THE_HUBS})),
            ],
            commit_message=f"thinkgate: {upload.folder.absolute().name}",
        )
        return str(commit.commit_url)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the Hub did not take '{name}': {reason}; the checkpoint is complete in "
            f"{upload.folder}, push it later with: thinkgate push {upload.folder} {name}"
        ) from error
