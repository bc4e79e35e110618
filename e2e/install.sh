#!/usr/bin/env bash
# Installs (or upgrades) the chart with the images of this clone: install.sh <kubeconfig> <state folder>.
# The operator restarts when its image has changed although the tag has not. Fields that a test has written are the chart's again.
set -euo pipefail
kubeconfig=$1 state=$2
root=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$state/bin:$PATH"
# Where tests start a Redis, for quotas that namespaces share: on this machine, by the address that the API server has.
node=$(kubectl --kubeconfig "$kubeconfig" config view --minify -o 'jsonpath={.clusters[0].cluster.server}' | sed -E 's|^https://||; s|:[0-9]+$||')
digest() { sha256sum "$state/images/$1.tar" 2>/dev/null | cut -c1-16; }
helm --kubeconfig "$kubeconfig" upgrade --install flotilla "$root/charts/flotilla" \
  --namespace flotilla-system --create-namespace --force-conflicts \
  --values "$root/e2e/values.yaml" \
  --set-string "gateway.quotaRedis=redis://$node:16379" \
  --set-string "operator.podAnnotations.flotilla\.dev/image=$(digest operator)" \
  --set-string "simulator.podAnnotations.flotilla\.dev/image=$(digest simulator)" \
  --wait --timeout 180s >"$state/logs/helm.log" 2>&1 || {
    echo "helm could not install the chart; the end of $state/logs/helm.log:" >&2
    tail -n 20 "$state/logs/helm.log" >&2
    kubectl --kubeconfig "$kubeconfig" -n flotilla-system get pods -o wide >&2 || :
    exit 1
  }
echo "the chart is installed in namespace flotilla-system"
