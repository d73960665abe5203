# Sourced by every script of this folder: where things are, and how ranks are started. Nothing here submits anything.
#
# Set these with `sbatch --export=ALL,NAME=VALUE ...`, in your shell before sbatch, or in ~/.m4oe-slurm (sourced first):
#   M4OE_HOME      the repository                       (default: the folder sbatch was called in)
#   M4OE_VENV      virtual environment                  (default: $M4OE_HOME/.venv if there is one, else what is on PATH)
#   M4OE_MODULES   modules to load, e.g. "cuda/12.8"    (default: none)
#   CONTAINER      image to run in, by apptainer        (default: none; the image needs the project's dependencies)
#   CONTAINER_OPTIONS  e.g. "--bind /scratch"           (default: none; --nv is added where there is a GPU)
#   MAX_RESTARTS   give up after so many requeues       (default: 100)

[ -f "$HOME/.m4oe-slurm" ] && . "$HOME/.m4oe-slurm"
M4OE_HOME=${M4OE_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
cd "$M4OE_HOME" || exit 1
if [ ! -f train.py ]; then
    echo "error: $M4OE_HOME is not the repository; submit from it or set M4OE_HOME" >&2
    exit 2
fi
for module in ${M4OE_MODULES:-}; do module load "$module"; done
M4OE_VENV=${M4OE_VENV-$M4OE_HOME/.venv}
[ -n "$M4OE_VENV" ] && [ -d "$M4OE_VENV/bin" ] && PATH="$M4OE_VENV/bin:$PATH"

# since SLURM 22.05 srun no longer takes over --cpus-per-task of the job
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
# the address SLURM itself uses for the first node: node names need not resolve everywhere
if [ -z "${MASTER_ADDR:-}" ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_ADDR=$(scontrol show node "$first" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
fi
export MASTER_ADDR
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}

in_container=()
if [ -n "${CONTAINER:-}" ]; then
    in_container=(apptainer exec --pwd "$M4OE_HOME" --bind "$M4OE_HOME")
    [ -e /dev/nvidia0 ] && in_container+=(--nv)
    # shellcheck disable=SC2206  # several options in one variable
    in_container+=(${CONTAINER_OPTIONS:-} "$CONTAINER")
fi

# ranks FOLDER COMMAND...: COMMAND on every task of the job, one log per rank in FOLDER
ranks() {
    local folder=$1
    shift
    mkdir -p "$folder"
    echo "$(date '+%F %T') job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"
    echo "logs of the ranks: $folder/$SLURM_JOB_ID-rank<n>.out"
    srun --kill-on-bad-exit=1 --open-mode=append --output="$folder/%j-rank%t.out" "${in_container[@]}" "$@"
}

# until_done FOLDER COMMAND...: as ranks; where the command was stopped and saved (exit status 75) the job is requeued.
# SIGUSR1 comes from --signal before the time limit, SIGTERM from preemption; both reach the ranks, which agree on a
# step, write a checkpoint and end. The requeued job resumes from it.
until_done() {
    local status=0
    trap 'echo "time is nearly up: asking the ranks to save"; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
    trap 'echo "preempted: the ranks save"; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
    ranks "$@" &
    local child=$!
    while :; do # a trapped signal ends wait before the child ends; a child that ended is there until it is waited for
        wait "$child"
        status=$?
        { [ "$status" -gt 128 ] && kill -0 "$child" 2>/dev/null; } || break
    done
    trap - USR1 TERM
    if [ "$status" -ne 75 ]; then
        return "$status"
    fi
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-100}" ]; then
        echo "stopped and saved, but already restarted ${SLURM_RESTART_COUNT} times: submit again to go on" >&2
        return 75
    fi
    echo "stopped and saved: requeueing job $SLURM_JOB_ID"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # SLURM ends this script now
}
