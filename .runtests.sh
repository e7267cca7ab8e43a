cd /tmp/wt/mcp; exec flock /tmp/w/cpu.lock nice -n 5 timeout 300 env OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -p no:cacheprovider "$@"
