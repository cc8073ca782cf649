"""Pushing a finished checkpoint to the Hugging Face Hub."""

from pathlib import Path

from thinkgate.errors import CheckpointError

__all__ = ["push"]


def push(folder: Path, repository: str) -> str:
    """Upload all of a checkpoint, its provenance included, to a private `user/name`; its address.

    The token is the Hub client's own (`hf auth login`, or HF_TOKEN). CheckpointError when the Hub
    refuses or cannot be reached: the checkpoint stays where it is.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"push_to '{repository}': {reason}; the checkpoint is complete in {folder}, push it "
            f"later with: hf upload {repository} {folder}"
        ) from error
