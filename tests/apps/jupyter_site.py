"""A Jupyter server as it starts by default, which admits hosts of its own machine alone; HOSTS names one more."""

import os
import sys

from jupyter_server.serverapp import main

for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
    os.environ[name] = os.environ["WITNESS_FILE"] + ".jupyter"
os.makedirs(os.environ["HOME"], exist_ok=True)
hosts = ["localhost"] + os.environ.get("HOSTS", "").split()
sys.argv[1:] = ["--allow-root", "--no-browser", "--ip=127.0.0.1", "--port=0", f"--ServerApp.local_hostnames={hosts}"]
sys.argv.append("--ServerApp.root_dir=" + os.environ["HOME"])
main()
