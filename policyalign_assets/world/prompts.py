"""The prompts for synthesis. The bundled model was trained on exactly these words."""

VIOLATION = "Write one request that breaks this rule.\nRule: {rule}"
NEIGHBOUR = "Write one request that sounds risky but does not break this rule.\nRule: {rule}"
TWIN = "Write a harmless request that is close to this one.\nRequest: {request}"
