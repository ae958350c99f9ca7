// No program: the CustomResourceDefinitions of the Prometheus operator, by which the charts' monitors and rules are checked.
module kaito.sh/tools/prometheus-operator

go 1.24.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
