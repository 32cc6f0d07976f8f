"""llama.cpp's server as a process: started by arguments, its keys on standard input, ended when that closes.

It runs in the environment of `tests.support.llama_server`, without Isabella.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Serve until standard input ends, which it also does if the tests are killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--packages", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--longest-answer", type=int, required=True)
    parser.add_argument("--never-done", action="store_true", help="answers end at a limit only")
    options = parser.parse_args()
    keys = sys.stdin.readline().split()
    sys.path.insert(0, options.packages)
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = options.model, {options.alias}
    params.hostnames, params.port, params.api_keys = ["127.0.0.1"], options.port, keys
    params.n_ctx, params.n_parallel, params.n_predict = options.window, 1, options.longest_answer
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.sampling.ignore_eos = options.never_done
    params.endpoint_slots, params.ui, params.warmup = True, False, False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
