"""Settings, and where each value comes from: keys, vendors and custom vendors."""
