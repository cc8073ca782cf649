#!/usr/bin/env bash
# Train where there is no candidate yet, evaluate, gate, and leave the reports in one folder.
# For any CI: exit code 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 2 a mistake. Set what differs:
#
#   RECIPE=quickstart CANDIDATE=runs/ci/grpo AGAINST=production POLICY=default bash docs/ci/gate.sh
set -euo pipefail

RECIPE=${RECIPE:-quickstart}            # trains RUN/base and RUN/grpo
RUN=${RUN:-runs/ci}
CANDIDATE=${CANDIDATE:-$RUN/grpo}
AGAINST=${AGAINST:-$RUN/base}           # the incumbent: a checkpoint folder or a registry alias
POLICY=${POLICY:-quickstart}            # a shipped policy or a YAML file
SUITE=${SUITE:-arithmetic}
REPORT=${REPORT:-$RUN/report}           # a folder for the files that are named below
read -ra THINKGATE <<<"${THINKGATE:-thinkgate}"
read -ra OPTIONS <<<"${OPTIONS:-}"      # more of 'thinkgate gate', such as --sequential
read -ra EVAL_OPTIONS <<<"${EVAL_OPTIONS:-}"   # more of 'thinkgate eval', such as --limit 500

if [ ! -f "$CANDIDATE/thinkgate/manifest.json" ]; then
  "${THINKGATE[@]}" train "$RECIPE" --out "$RUN"
fi
reports=(summary.md report.html report.json junit.xml decision.json)
mkdir -p "$REPORT"
(cd "$REPORT" && rm -f "${reports[@]}") # what an earlier run left, and nothing else
"${THINKGATE[@]}" eval "$CANDIDATE" --suite "$SUITE" ${EVAL_OPTIONS[@]+"${EVAL_OPTIONS[@]}"}

verdict=0
"${THINKGATE[@]}" gate "$CANDIDATE" --policy "$POLICY" --against "$AGAINST" \
  ${OPTIONS[@]+"${OPTIONS[@]}"} || verdict=$?
case $verdict in 0 | 1 | 3)             # after a mistake there is nothing new to show
  for file in "${reports[@]}"; do
    cp "$CANDIDATE/thinkgate/$file" "$REPORT/"
  done
esac
exit "$verdict"
