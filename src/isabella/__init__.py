"""Isabella: memory agents on Letta, whose providers provably hold the keys you configured."""
