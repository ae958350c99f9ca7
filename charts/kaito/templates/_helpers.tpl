{{/* Base name of the chart's objects. */}}
{{- define "kaito.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Name of the chart's objects: the release, with the chart's name unless it is in there already. */}}
{{- define "kaito.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "kaito.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kaito.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that select the controller's Pods; they never change. */}}
{{- define "kaito.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kaito.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "kaito.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "kaito.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* ServiceAccount of the controller. */}}
{{- define "kaito.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kaito.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Name of the Lease, for the environment and the Role alike. */}}
{{- define "kaito.leaseName" -}}
{{ include "kaito.fullname" . }}-leader-election
{{- end }}

{{/* Tag of this project's images. */}}
{{- define "kaito.tag" -}}
{{- $tag := default .Chart.AppVersion .Values.image.tag }}
{{- if eq $tag "latest" }}
{{- fail "image.tag is latest: name a version, so that all nodes run the same image" }}
{{- end }}
{{- $tag }}
{{- end }}

{{/*
A registry and the folder of images in it: (dict "name" "image.registry" "value" .Values.image.registry). Images have no capitals
and no empty folder, so these are mended; what no image can begin with stops helm.
*/}}
{{- define "kaito.registry" -}}
{{- $given := default "" .value | toString }}
{{- $registry := $given | trim | trimSuffix "/" | lower }}
{{- if not $registry }}
{{- fail (printf "%s is empty: name the registry that holds the images; if it came from a variable of the shell, that one is not set" .name) }}
{{- end }}
{{- if not (regexMatch "^(\\[[0-9a-f:.]+\\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:[0-9]{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$" $registry) }}
{{- fail (printf "%s is %q: write host[:port][/folder] without https://, as registry.example.com/kaito; an IPv6 address stands in brackets" .name $given) }}
{{- end }}
{{- $registry }}
{{- end }}

{{/* Stops helm at a value of upstream's chart that has another name here: (dict "root" $ "ours" (dict "path" "what to use")). */}}
{{- define "kaito.refuseUpstreamValues" -}}
{{- range $path, $instead := .ours }}
{{- $place := $.root.Values }}
{{- $set := true }}
{{- range splitList "." $path }}
{{- $set = and $set (kindIs "map" $place) (hasKey (default dict $place) .) }}
{{- if $set }}
{{- $place = get $place . }}
{{- end }}
{{- end }}
{{- if $set }}
{{- fail (printf "the value %s of upstream's chart is not one of this chart; %s" $path $instead) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Values that this chart cannot work with, each in a sentence. */}}
{{- define "kaito.checkValues" -}}
{{- include "kaito.refuseUpstreamValues" (dict "root" . "ours" (dict
  "image.repository" "image.registry names the registry and the folder of all images"
  "imagePullSecrets" "image.pullSecrets lists the names of the Secrets"
  "featureGates" "nodeAPI says how nodes are asked for, serving.variant what serves models"
  "webhook" "there is no webhook: admissionPolicies.enabled switches the rules that the API server checks"
  "podSecurityContext" "its Pods always run without rights, leave it out"
  "securityContext" "its Pods always run without rights, leave it out"
  "podTemplateLabels" "podLabels are those of the controller's Pods"
  "serviceAccountName" "serviceAccount.name names the account"
  "spotInstance" "nodeClaim.extraRequirements asks for a capacity type"
  "presetBaseRegistryName" "image.registry names the registry of the images that serve and tune"
  "localCSIDriver" "no driver is installed, leave it out"
)) }}
{{- range $registry, $mirror := .Values.registries.mirrors }}
{{- if contains "/" $registry }}
{{- fail (printf "registries.mirrors names %q: write a registry's host[:port] without https:// and folder, as docker.io" $registry) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Image of the controllers and of init containers. */}}
{{- define "kaito.hooksImage" -}}
{{ include "kaito.registry" (dict "name" "image.registry" "value" .Values.image.registry) }}/kaito-hooks:{{ include "kaito.tag" . }}
{{- end }}

{{/* Images of serving or tuning by variant: (dict "root" $ "name" "serving" "images" map). */}}
{{- define "kaito.variantImages" -}}
{{- $root := .root }}
{{- $name := .name }}
{{- range $variant, $image := .images }}
{{ $variant }}: {{ default (printf "%s/kaito-%s:%s-%s" (include "kaito.registry" (dict "name" "image.registry" "value" $root.Values.image.registry)) $name (include "kaito.tag" $root) $variant) $image | quote }}
{{- end }}
{{- end }}

{{/* What every container of this chart is denied. */}}
{{- define "kaito.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Pods of this chart that need no rights on their node. */}}
{{- define "kaito.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/*
Presets by name, as JSON: presets/models/*.yaml with the user's changes.
null removes a preset, and weights replace ours as a whole, because they have one source only.
*/}}
{{- define "kaito.presets" -}}
{{- $presets := dict }}
{{- $files := .Files.Glob "presets/models/*.yaml" }}
{{- if not $files }}
{{- fail "the chart holds no presets: in a checkout, charts/kaito/presets must be a symbolic link to ../../presets; check it out again after git config core.symlinks true" }}
{{- end }}
{{- range $path, $_ := $files }}
{{- $presets = merge $presets ($.Files.Get $path | fromYaml) }}
{{- end }}
{{- range $name, $change := .Values.presets }}
{{- if kindIs "invalid" $change }}
{{- $presets = unset $presets $name }}
{{- else }}
{{- $ours := deepCopy (default (dict) (get $presets $name)) }}
{{- if hasKey $change "weights" }}
{{- $ours = unset $ours "weights" }}
{{- end }}
{{- $presets = set $presets $name (mergeOverwrite $ours $change) }}
{{- end }}
{{- end }}
{{- toJson $presets }}
{{- end }}

{{/* Instance types by name, as JSON: those of the cloud with the user's changes; null removes one. */}}
{{- define "kaito.instanceTypes" -}}
{{- $types := dict }}
{{- if ne .Values.cloudProviderName "none" }}
{{- $types = .Files.Get (printf "presets/instance-types/%s.yaml" .Values.cloudProviderName) | fromYaml }}
{{- end }}
{{- range $name, $change := .Values.instanceTypes }}
{{- if kindIs "invalid" $change }}
{{- $types = unset $types $name }}
{{- else }}
{{- $types = set $types $name (mergeOverwrite (deepCopy (default (dict) (get $types $name))) $change) }}
{{- end }}
{{- end }}
{{- toJson $types }}
{{- end }}

{{/* An instance type for a first model: the user's own, where there is no cloud. */}}
{{- define "kaito.exampleType" -}}
{{- dict "azure" "Standard_NC4as_T4_v3" "aws" "g5.xlarge" "none" "THE-TYPE-OF-YOUR-NODES" | dig .Values.cloudProviderName "" }}
{{- end }}

{{/*
Two CEL variables that sort a list of different texts, of which the second, <list>Sorted, is the result: the n-th text is the one
whose rank is n. (CEL got sort() in Kubernetes 1.34.)
*/}}
{{- define "kaito.celSorted" -}}
- name: {{ . }}Ranks
  expression: variables.{{ . }}.map(name, variables.{{ . }}.filter(other, other < name).size())
- name: {{ . }}Sorted
  expression: variables.{{ . }}.map(name, variables.{{ . }}[variables.{{ . }}Ranks.indexOf(variables.{{ . }}.indexOf(name))])
{{- end }}

{{/*
Beginnings of names of instance types that are admitted unchecked, as JSON. Azure has more GPU sizes than any list;
without a cloud the nodes exist already, so that every name is good ("" begins all of them).
*/}}
{{- define "kaito.uncheckedPrefixes" -}}
{{- $ofCloud := dict "azure" (list "Standard_N" "Standard_D") "aws" (list) "none" (list "") }}
{{- concat (get $ofCloud .Values.cloudProviderName) .Values.uncheckedInstanceTypePrefixes | default list | toJson }}
{{- end }}

{{/* Secrets that may pull this project's images. */}}
{{- define "kaito.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the Pods of this chart's controller and hooks run. */}}
{{- define "kaito.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $.Values $key }}
{{- dict $key . | toYaml | nindent 0 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels of the device plugin; its selector must not catch the controller's Pods. */}}
{{- define "kaito.devicePluginLabels" -}}
app.kubernetes.io/name: nvidia-device-plugin
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Metadata of an object that lives as long as a hook: (dict "root" $ "suffix" "x" "events" "pre-upgrade" "weight" 0). */}}
{{- define "kaito.hookMetadata" -}}
name: {{ include "kaito.fullname" .root }}-{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "kaito.hookLabels" .root | nindent 2 }}
annotations:
  helm.sh/hook: {{ .events }}
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  # Helm 3.18 and newer print why a hook failed.
  helm.sh/hook-output-log-policy: hook-failed
{{- end }}

{{/* Labels of hooks; the controller's selector must not catch their Pods. */}}
{{- define "kaito.hookLabels" -}}
app.kubernetes.io/name: {{ include "kaito.name" . }}-hook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Binds a hook's ClusterRole to its ServiceAccount; both are called like the binding. */}}
{{- define "kaito.hookBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "kaito.hookMetadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ include "kaito.fullname" .root }}-{{ .suffix }}
subjects:
- kind: ServiceAccount
  name: {{ include "kaito.fullname" .root }}-{{ .suffix }}
  namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* A hook's Job: kaito_hooks.helm with .command; .configMap mounts the ConfigMap of the hook's name. */}}
{{- define "kaito.hookJob" }}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "kaito.hookMetadata" . | nindent 2 }}
spec:
  backoffLimit: 3
  # A finding (exit code 2) stays one; only what went wrong on the way to it is tried again.
  podFailurePolicy:
    rules:
    - action: FailJob
      onExitCodes: {operator: In, values: [2]}
  activeDeadlineSeconds: 300
  template:
    metadata:
      labels:
        {{- include "kaito.hookLabels" .root | nindent 8 }}
    spec:
      {{- include "kaito.pullSecrets" .root | nindent 6 }}
      restartPolicy: Never
      serviceAccountName: {{ include "kaito.fullname" .root }}-{{ .suffix }}
      securityContext:
        {{- include "kaito.podSecurityContext" .root | nindent 8 }}
      containers:
      - name: {{ .suffix }}
        image: {{ include "kaito.hooksImage" .root | quote }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        command: {{ concat (list "python" "-m" "kaito_hooks.helm") .command | toJson }}
        resources:
          requests: {cpu: 50m, memory: 64Mi}
          limits: {memory: 256Mi}
        securityContext:
          {{- include "kaito.containerSecurityContext" .root | nindent 10 }}
        volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- if .configMap }}
        - {name: crds, mountPath: /etc/kaito/crds, readOnly: true}
        {{- end }}
      volumes:
      - name: tmp
        emptyDir: {}
      {{- if .configMap }}
      - name: crds
        configMap:
          name: {{ include "kaito.fullname" .root }}-{{ .suffix }}
      {{- end }}
      {{- include "kaito.scheduling" .root | nindent 6 }}
{{- end }}
