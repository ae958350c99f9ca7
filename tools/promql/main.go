// Command promql says whether Prometheus takes what charts hand it and what it makes of it, by Prometheus' own parsers
// and engine, which are a small part of it and of its promtool.
//
//	promql rules    reads a file of rules; says what is wrong with it
//	promql metrics  reads queries, one a line; writes the names of the metrics that each asks for, one line a query
//	promql alerts   reads rules and series (trial, as JSON); writes which alerts fired, and when
//	promql relabel  reads relabelings and targets (targets, as YAML); writes what becomes of each target, as JSON
//
// All read standard input and end with 1 after a finding.
package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	found := 0
	switch strings.Join(os.Args[1:], " ") {
	case "rules":
		found = rules(os.Stdin)
	case "metrics":
		found = metrics(os.Stdin, os.Stdout)
	case "alerts":
		found = alerts(os.Stdin, os.Stdout)
	case "relabel":
		found = relabelled(os.Stdin, os.Stdout)
	default:
		fmt.Fprintln(os.Stderr, "usage: promql rules|metrics|alerts|relabel < FILE")
		os.Exit(2)
	}
	if found > 0 {
		os.Exit(1)
	}
}

func rules(input io.Reader) int {
	content, err := io.ReadAll(input)
	if err != nil {
		return finding(err)
	}
	known := parser.NewParser(parser.Options{})
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	_, errors := rulefmt.Parse(content, false, model.LegacyValidation, known, logger)
	for _, err := range errors {
		finding(err)
	}
	return len(errors)
}

func metrics(input io.Reader, output io.Writer) int {
	known := parser.NewParser(parser.Options{})
	found := 0
	lines := bufio.NewScanner(input)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		expression, err := known.ParseExpr(lines.Text())
		if err != nil {
			found += finding(fmt.Errorf("%s: %w", lines.Text(), err))
			continue
		}
		fmt.Fprintln(output, strings.Join(names(expression), " "))
	}
	if err := lines.Err(); err != nil {
		found += finding(err)
	}
	return found
}

// names of the metrics that an expression selects, one by one or as a choice a|b, in alphabetical order.
func names(expression parser.Expr) []string {
	var found []string
	parser.Inspect(expression, func(node parser.Node, _ []parser.Node) error {
		if selector, ok := node.(*parser.VectorSelector); ok {
			for _, matcher := range selector.LabelMatchers {
				if matcher.Name != model.MetricNameLabel {
					continue
				}
				if matcher.Type == labels.MatchEqual {
					found = append(found, matcher.Value)
				} else if matcher.Type == labels.MatchRegexp {
					found = append(found, matcher.SetMatches()...)
				}
			}
		}
		return nil
	})
	slices.Sort(found)
	return slices.Compact(found)
}

func finding(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
