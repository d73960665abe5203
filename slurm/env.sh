# Sourced by every script of this folder: where things are, and how ranks are started. Nothing here submits anything.
#
# Set these with `sbatch --export=ALL,NAME=VALUE ...`, in your shell before sbatch, or in ~/.m4oe-slurm (sourced first):
#   M4OE_HOME      folder that holds slurm/: the repository, or one that `m4oe init` made
#                                                       (default: the folder sbatch was called in)
#   M4OE_VENV      virtual environment                  (default: $M4OE_HOME/.venv if there is one, else what is on PATH)
#   M4OE_MODULES   modules to load, e.g. "cuda/12.8"    (default: none)
#   CONTAINER      image to run in                      (default: none; the image needs the project's dependencies)
#   CONTAINER_BY   apptainer, singularity or pyxis      (default: apptainer; pyxis is srun's plug-in for enroot)
#   CONTAINER_OPTIONS  e.g. "--bind /scratch", with pyxis "--no-container-mount-home"  (default: none)
#   CONTAINER_MOUNTS   with pyxis, e.g. "/scratch:/scratch"  (default: none but the repository)
#   MAX_RESTARTS   give up after this many requeues     (default: 100)

early= # a signal that came before until_done could take it; by default it would end the script, and the job with it
trap 'early=USR1' USR1
trap 'early=TERM' TERM
[ -f "$HOME/.m4oe-slurm" ] && . "$HOME/.m4oe-slurm"
M4OE_HOME=${M4OE_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}
cd "$M4OE_HOME" || exit 1
for module in ${M4OE_MODULES:-}; do module load "$module"; done
M4OE_VENV=${M4OE_VENV-$M4OE_HOME/.venv}
[ -n "$M4OE_VENV" ] && [ -d "$M4OE_VENV/bin" ] && PATH="$M4OE_VENV/bin:$PATH"
if [ -z "${CONTAINER:-}" ] && ! python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("m4oe_ds") is None)'; then
    echo "error: $(command -v python || echo python) has no m4oe_ds; install it, or set M4OE_VENV, M4OE_MODULES or CONTAINER" >&2
    exit 2
fi

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

# A task of an array must be called by its number: the id of the last one is also that of the whole array.
job=$SLURM_JOB_ID
[ -n "${SLURM_ARRAY_JOB_ID:-}" ] && job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

in_container=() # before the command
srun_options=()
if [ -n "${CONTAINER:-}" ]; then
    # shellcheck disable=SC2206  # CONTAINER_OPTIONS holds several
    case "${CONTAINER_BY:-apptainer}" in
    apptainer | singularity)
        in_container=("${CONTAINER_BY:-apptainer}" exec --pwd "$M4OE_HOME" --bind "$M4OE_HOME")
        [ -e /dev/nvidia0 ] && in_container+=(--nv)
        in_container+=(${CONTAINER_OPTIONS:-} "$CONTAINER")
        ;;
    pyxis)
        srun_options=("--container-image=$CONTAINER" "--container-workdir=$M4OE_HOME")
        srun_options+=("--container-mounts=$M4OE_HOME:$M4OE_HOME${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
        srun_options+=(${CONTAINER_OPTIONS:-})
        ;;
    *)
        echo "error: CONTAINER_BY=$CONTAINER_BY is not apptainer, singularity or pyxis" >&2
        exit 2
        ;;
    esac
fi

# ranks FOLDER COMMAND...: COMMAND on every task of the job, one log per rank in FOLDER. Where one ends the others have a
# minute: after a stop they end with the same status, but not in the same instant; after a crash they would wait forever.
ranks() {
    local folder=$1
    shift
    mkdir -p "$folder"
    echo "$(date '+%F %T') job $job on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1)): $*"
    echo "logs of the ranks: $folder/$SLURM_JOB_ID-rank<n>.out"
    srun --kill-on-bad-exit=0 --wait=60 --open-mode=append --output="$folder/%j-rank%t.out" \
        "${srun_options[@]}" "${in_container[@]}" "$@"
}

# until_done FOLDER COMMAND...: as ranks; where the command was stopped and saved (exit status 75) the job is requeued.
# SIGUSR1 comes from --signal before the time limit, SIGTERM from preemption; both reach the ranks, which agree on a
# step, write a checkpoint and end. The requeued job resumes from it. Ranks that were stopped while they started, or run
# a command that cannot save, are ended by the signal itself: requeued as well, they start again.
until_done() {
    local status=0 asked= signalled= child=
    trap 'asked=1 signalled=1; echo "time is nearly up: asking the ranks to save"; ask_ranks USR1' USR1
    trap 'asked=1 signalled=1; echo "preempted: the ranks save"; ask_ranks TERM' TERM
    ranks "$@" &
    child=$!
    [ -n "$early" ] && kill -s "$early" "$$"
    while :; do # a trapped signal ends wait early; the child's own status is kept until wait is called again
        signalled=
        wait "$child"
        status=$?
        [ -n "$signalled" ] || break
    done
    trap '' USR1
    trap - TERM
    if [ "$status" -eq 75 ]; then
        echo "stopped and saved"
    elif [ "$status" -gt 128 ] && { [ -n "$asked" ] || job_is 'PreemptTime=[0-9]'; }; then
        echo "stopped before anything could be saved"
    else
        return "$status"
    fi
    job_is 'JobState=RUNNING' || return "$status" # cancelled, or requeued by SLURM itself
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${MAX_RESTARTS:-100}" ]; then
        echo "already restarted ${SLURM_RESTART_COUNT:-0} times: submit again to continue" >&2
        return 75
    fi
    echo "requeueing job $job"
    scontrol requeue "$job" || return 75
    sleep 60 # SLURM ends this script now
}

# ask_ranks SIGNAL: sends it until they end, because nobody gets what is sent before srun has started them
ask_ranks() {
    scancel --quiet --signal="$1" "$job"
    while sleep 30 && [ -n "$child" ] && kill -0 "$child" 2>/dev/null; do scancel --quiet --signal="$1" "$job"; done &
}

# job_is PATTERN: whether SLURM says so of this job. It tells the ranks about a preemption, but not the script.
job_is() {
    scontrol show job "$job" | grep -q "$1"
}
