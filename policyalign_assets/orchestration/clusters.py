"""Launchers for clusters.

A worker there needs this package, the model, and the URL or shared folder of the exchange.
`RayJobs` was run on a local cluster (docs/deploy.md). `Kubernetes` was never run: only its
configuration is checked. What a client raises passes through, and becomes the step's failure.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from typing import Any

import dagster as dg

from policyalign_assets.files import Location, location, remove
from policyalign_assets.orchestration.launchers import WORKER, OutOfProcess

EXCHANGE = "POLICYALIGN_EXCHANGE"


class _OnCluster(OutOfProcess):
    # a folder or URL that the run and the cluster both reach
    exchange: str = os.environ.get(EXCHANGE, "")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        if not self.exchange:
            raise dg.Failure(
                f"{type(self).__name__} needs a place that the run and the cluster both reach. "
                f"Fix: set {EXCHANGE}, for example s3://bucket/exchange.",
                allow_retries=False,
            )

    @contextlib.contextmanager
    def folder(self, context: dg.AssetExecutionContext) -> Iterator[Location]:
        folder = (
            location(self.exchange)
            / f"{context.run_id}-{context.asset_key.path[-1]}-{context.retry_number}"
        )
        try:
            yield folder
        finally:
            remove(folder)


class RayJobs(_OnCluster):
    """A job of a Ray cluster (`pip install dagster-ray`), which Dagster stops with the run."""

    address: str | None = None  # of the dashboard, http://...:8265; not set: RAY_ADDRESS
    python: str = "python"  # on the cluster
    gpus: float = 0
    runtime_env: dict[str, Any] = {}

    def run_worker(self, context: dg.AssetExecutionContext, folder: str) -> int:
        from dagster_ray import PipesRayJobClient

        job = {
            "entrypoint": shlex.join([self.python, *WORKER, folder]),
            "entrypoint_num_gpus": self.gpus,
            "runtime_env": {**self.runtime_env},
        }
        PipesRayJobClient(address=self.address).run(context=context, submit_job_params=job)
        return 0


class Kubernetes(_OnCluster):
    """A pod (`pip install dagster-k8s`), which Dagster deletes with the run."""

    image: str = os.environ.get("POLICYALIGN_IMAGE", "policyalign-assets")
    namespace: str | None = None
    gpus: int = 1
    pod_spec: dict[str, Any] = {}  # node selectors, tolerations, volumes

    def run_worker(self, context: dg.AssetExecutionContext, folder: str) -> int:
        from dagster_k8s import PipesK8sClient

        resources = {"limits": {"nvidia.com/gpu": str(self.gpus)}} if self.gpus else {}
        pod = {
            "restart_policy": "Never",
            **self.pod_spec,
            "containers": [{"name": "worker", "image": self.image, "resources": resources}],
        }
        PipesK8sClient().run(
            context=context,
            image=self.image,
            command=["python", *WORKER, folder],
            namespace=self.namespace,
            base_pod_spec=pod,
        )
        return 0
