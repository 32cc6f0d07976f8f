"""The watcher: keeps the providers in sync with the configuration while a process runs."""
