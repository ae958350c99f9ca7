package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/template"
	"github.com/prometheus/prometheus/util/annotations"
)

// trial is what alerts reads: a file of rules, and series in the notation of Prometheus' tests of rules, with a sample
// every Every seconds, from 0 on. The rules are evaluated as often, until Until.
type trial struct {
	Rules  string            `json:"rules"`
	Series map[string]string `json:"series"`
	Every  int64             `json:"every"`
	Until  int64             `json:"until"`
}

// firing is an alert that fired: from the first evaluation at which it did to the last, in seconds. Its annotations are
// those of the first.
type firing struct {
	Alert       string            `json:"alert"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	From        int64             `json:"from"`
	To          int64             `json:"to"`
}

func alerts(input io.Reader, output io.Writer) int {
	var asked trial
	if err := json.NewDecoder(input).Decode(&asked); err != nil {
		return finding(err)
	}
	known := parser.NewParser(parser.Options{})
	groups, errors := rulefmt.Parse([]byte(asked.Rules), false, model.LegacyValidation, known, slog.New(slog.DiscardHandler))
	for _, err := range errors {
		finding(err)
	}
	if len(errors) > 0 {
		return len(errors)
	}
	data, err := loaded(asked, known)
	if err != nil {
		return finding(err)
	}
	engine := promql.NewEngine(promql.EngineOpts{
		MaxSamples:               1_000_000,
		Timeout:                  time.Minute,
		EnableAtModifier:         true,
		Parser:                   known,
		NoStepSubqueryIntervalFn: func(int64) int64 { return asked.Every * 1000 },
	})
	defer engine.Close()
	found := []*firing{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			fired, err := evaluated(rule, asked, engine, data)
			if err != nil {
				return finding(fmt.Errorf("%s: %w", rule.Alert, err))
			}
			found = append(found, fired...)
		}
	}
	if err := json.NewEncoder(output).Encode(found); err != nil {
		return finding(err)
	}
	return 0
}

// evaluated says when an alert fires: a result of its expression that is there for as long as the rule says.
func evaluated(rule rulefmt.Rule, asked trial, engine *promql.Engine, data storage.Queryable) ([]*firing, error) {
	var found []*firing
	since, current := map[string]int64{}, map[string]*firing{}
	for at := int64(0); at <= asked.Until; at += asked.Every {
		ask := func(ctx context.Context, expression string, when time.Time) (promql.Vector, error) {
			query, err := engine.NewInstantQuery(ctx, data, nil, expression, when)
			if err != nil {
				return nil, err
			}
			defer query.Close()
			result := query.Exec(ctx)
			if result.Err != nil {
				return nil, result.Err
			}
			if scalar, ok := result.Value.(promql.Scalar); ok {
				return promql.Vector{{T: scalar.T, F: scalar.V}}, nil
			}
			return result.Vector()
		}
		now := time.Unix(at, 0)
		vector, err := ask(context.Background(), rule.Expr, now)
		if err != nil {
			return nil, err
		}
		there := map[string]bool{}
		for _, sample := range vector {
			of := sample.Metric.DropReserved(func(name string) bool { return name == model.MetricNameLabel })
			key := of.String()
			there[key] = true
			if _, ok := since[key]; !ok {
				since[key] = at
			}
			if at-since[key] < int64(time.Duration(rule.For).Seconds()) {
				continue
			}
			if current[key] == nil {
				told, err := annotated(rule, sample, now, ask)
				if err != nil {
					return nil, err
				}
				marks := of.Map()
				maps.Copy(marks, rule.Labels)
				current[key] = &firing{Alert: rule.Alert, Labels: marks, Annotations: told, From: at}
				found = append(found, current[key])
			}
			current[key].To = at
		}
		maps.DeleteFunc(since, func(key string, _ int64) bool { return !there[key] })
		maps.DeleteFunc(current, func(key string, _ *firing) bool { return !there[key] })
	}
	return found, nil
}

func annotated(rule rulefmt.Rule, sample promql.Sample, now time.Time, ask template.QueryFunc) (map[string]string, error) {
	data := template.AlertTemplateData(sample.Metric.Map(), nil, "", sample)
	told := map[string]string{}
	for name, text := range rule.Annotations {
		whole := strings.Join([]string{"{{$labels := .Labels}}", "{{$value := .Value}}", text}, "")
		at := model.TimeFromUnix(now.Unix())
		expanded, err := template.NewTemplateExpander(
			context.Background(), whole, rule.Alert, data, at, ask, &url.URL{}, nil,
		).Expand()
		if err != nil {
			return nil, err
		}
		told[name] = expanded
	}
	return told, nil
}

// loaded are the series as something that can be queried.
func loaded(asked trial, known parser.Parser) (storage.Queryable, error) {
	var all []storage.Series
	for name, values := range asked.Series {
		of, sequence, err := known.ParseSeriesDesc(name + " " + values)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", name, values, err)
		}
		var points []promql.FPoint
		for i, value := range sequence {
			if !value.Omitted {
				points = append(points, promql.FPoint{T: int64(i) * asked.Every * 1000, F: value.Value})
			}
		}
		all = append(all, promql.NewStorageSeries(promql.Series{Metric: of, Floats: points}))
	}
	return &series{all}, nil
}

// series in memory, of which Prometheus asks for those that match.
type series struct{ all []storage.Series }

func (s *series) Querier(_, _ int64) (storage.Querier, error) {
	return &querier{storage.NoopQuerier(), s.all}, nil
}

type querier struct {
	storage.Querier
	all []storage.Series
}

func (q *querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, wanted ...*labels.Matcher) storage.SeriesSet {
	found := &selected{}
	for _, one := range q.all {
		if matches(one.Labels(), wanted) {
			found.left = append(found.left, one)
		}
	}
	return found
}

// selected series, of which the first is the current one.
type selected struct {
	left  []storage.Series
	began bool
}

func (s *selected) Next() bool {
	if s.began {
		s.left = s.left[1:]
	}
	s.began = true
	return len(s.left) > 0
}

func (s *selected) At() storage.Series                { return s.left[0] }
func (s *selected) Err() error                        { return nil }
func (s *selected) Warnings() annotations.Annotations { return nil }

func matches(of labels.Labels, wanted []*labels.Matcher) bool {
	for _, matcher := range wanted {
		if !matcher.Matches(of.Get(matcher.Name)) {
			return false
		}
	}
	return true
}
