"""Files, processes, signals, logging, tasks and URLs: nothing that knows Letta."""
