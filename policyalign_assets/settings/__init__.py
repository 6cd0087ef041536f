"""One typed configuration for the whole pipeline.

Values come from these sources, the first of which takes precedence:

1. explicit overrides (Dagster run config),
2. environment variables named `POLICYALIGN_<SECTION>__<FIELD>`,
3. the profile (`POLICYALIGN_PROFILE`; without it, the model decides, see `load_settings`),
4. the defaults below.

Every value is checked when the settings are created, before any work starts. An unknown section,
field or variable is refused.
"""

from policyalign_assets.settings.base import (
    BUNDLED,
    ENGLISH,
    ENV_PREFIX,
    LOCAL,
    LORA_RANKS_OF_VLLM,
    NO_EFFECT,
    SMOLLM2,
    SettingsError,
)
from policyalign_assets.settings.data import (
    FilterSettings,
    FirewallSettings,
    SensitivitySettings,
    SynthesisSettings,
)
from policyalign_assets.settings.endpoints import (
    KEY_VARIABLE,
    EndpointSettings,
    GeneratorSettings,
    may_hold_a_key,
)
from policyalign_assets.settings.evidence import (
    BARS,
    LOWER_BOUND_BARS,
    EvaluationSettings,
    GateSettings,
    JudgeSettings,
    Probe,
    ReportSettings,
    WaivableGate,
)
from policyalign_assets.settings.loading import load_settings
from policyalign_assets.settings.model import ModelSettings
from policyalign_assets.settings.operation import (
    AlertSettings,
    AutomationSettings,
    ReleaseSettings,
    approver_parts,
)
from policyalign_assets.settings.pipeline import Settings
from policyalign_assets.settings.profiles import PROFILES
from policyalign_assets.settings.training import (
    DeploymentSettings,
    DistillationSettings,
    WarmStartSettings,
)

__all__ = [
    "BARS",
    "BUNDLED",
    "ENGLISH",
    "ENV_PREFIX",
    "KEY_VARIABLE",
    "LOCAL",
    "LORA_RANKS_OF_VLLM",
    "LOWER_BOUND_BARS",
    "NO_EFFECT",
    "PROFILES",
    "SMOLLM2",
    "AlertSettings",
    "AutomationSettings",
    "DeploymentSettings",
    "DistillationSettings",
    "EndpointSettings",
    "EvaluationSettings",
    "FilterSettings",
    "FirewallSettings",
    "GateSettings",
    "GeneratorSettings",
    "JudgeSettings",
    "ModelSettings",
    "Probe",
    "ReleaseSettings",
    "ReportSettings",
    "SensitivitySettings",
    "Settings",
    "SettingsError",
    "SynthesisSettings",
    "WaivableGate",
    "WarmStartSettings",
    "approver_parts",
    "load_settings",
    "may_hold_a_key",
]
