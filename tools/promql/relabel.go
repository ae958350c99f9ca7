package main

import (
	"encoding/json"
	"io"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/relabel"
	"go.yaml.in/yaml/v3"
)

// targets is what relabel reads: rules in Prometheus' own spelling, and the labels of the targets that were discovered.
type targets struct {
	Rules   []*relabel.Config   `yaml:"rules"`
	Targets []map[string]string `yaml:"targets"`
}

// relabelled writes the labels of each target, null for one that is dropped.
func relabelled(input io.Reader, output io.Writer) int {
	var asked targets
	if err := yaml.NewDecoder(input).Decode(&asked); err != nil {
		return finding(err)
	}
	for _, rule := range asked.Rules {
		if err := rule.Validate(model.LegacyValidation); err != nil {
			return finding(err)
		}
	}
	found := make([]map[string]string, len(asked.Targets))
	for i, target := range asked.Targets {
		builder := labels.NewBuilder(labels.FromMap(target))
		if relabel.ProcessBuilder(builder, asked.Rules...) {
			found[i] = builder.Labels().Map()
		}
	}
	if err := json.NewEncoder(output).Encode(found); err != nil {
		return finding(err)
	}
	return 0
}
