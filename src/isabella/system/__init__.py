"""Files, processes, output, logs, tasks and URLs. This package imports no other one, and knows nothing of Letta."""
