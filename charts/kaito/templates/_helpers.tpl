{{/* Base name of the chart's objects. */}}
{{- define "kaito.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" }}
{{- end }}

{{/*
Name of the chart's objects: the release, with the chart's name unless it is in there already. With what follows it no name of a Job
is longer than a label.
*/}}
{{- define "kaito.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" }}
{{- else if contains (include "kaito.name" .) .Release.Name }}
{{- .Release.Name | trunc 47 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "kaito.name" .) | trunc 47 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Stops helm where two ports are one, or a Service could not have the name of the chart's objects: (dict "root" $ "metrics" port "health" port). */}}
{{- define "kaito.checkNameAndPorts" -}}
{{- $name := include "kaito.fullname" .root }}
{{- if or (regexMatch "^[0-9]" $name) (contains "." $name) }}
{{- fail (printf "%q would be the name of a Service, which begins with a letter and has no dot: name the release otherwise, or set fullnameOverride" $name) }}
{{- end }}
{{- if eq (int .metrics) (int .health) }}
{{- fail (printf "%s and %s are both %d: the Pod needs a port for each" .metricsName .healthName (int .metrics)) }}
{{- end }}
{{- end }}

{{/* Labels that select the controller's Pods; they never change. */}}
{{- define "kaito.selectorLabels" -}}
app.kubernetes.io/name: {{ include "kaito.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Labels of every object but hooks; those that the chart itself goes by win over the user's. */}}
{{- define "kaito.labels" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_")
  "app.kubernetes.io/version" .Chart.AppVersion
  "app.kubernetes.io/part-of" "kaito"
  "app.kubernetes.io/managed-by" .Release.Service }}
{{- merge (include "kaito.selectorLabels" . | fromYaml) $own (default dict .Values.additionalLabels) | toYaml }}
{{- end }}

{{/* Labels and annotations of every object but hooks: (dict "root" $ "labels" map "annotations" map), the maps if it has its own. */}}
{{- define "kaito.metadata" -}}
labels:
  {{- merge (include "kaito.labels" .root | fromYaml) (default dict .labels) | toYaml | nindent 2 }}
{{- with merge (dict) (default dict .annotations) (default dict .root.Values.additionalAnnotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ServiceAccount of the controller. */}}
{{- define "kaito.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "kaito.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Labels by which Kubernetes' own roles take the rules of a ClusterRole: (list "view" "edit"). */}}
{{- define "kaito.aggregateTo" -}}
{{- range . }}
rbac.authorization.k8s.io/aggregate-to-{{ . }}: "true"
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

{{/* An image, or a folder of images, in global.imageRegistry instead of its own registry: (dict "root" $ "image" "nvcr.io/nvidia/x"). */}}
{{- define "kaito.mirrored" -}}
{{- $global := default dict .root.Values.global }}
{{- if $global.imageRegistry }}
{{- $registry := include "kaito.registry" (dict "name" "global.imageRegistry" "value" $global.imageRegistry) }}
{{- $path := regexReplaceAll "^([^/]*[.:][^/]*|localhost)(/|$)" .image "" }}
{{- printf "%s/%s" $registry $path | trimSuffix "/" }}
{{- else }}
{{- .image }}
{{- end }}
{{- end }}

{{/* Registry and folder of this project's images. */}}
{{- define "kaito.imageRegistry" -}}
{{- $registry := include "kaito.registry" (dict "name" "image.registry" "value" .Values.image.registry) }}
{{- include "kaito.mirrored" (dict "root" . "image" $registry) }}
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
  "clusterRoleBindingName" "fullnameOverride names all objects"
  "clusterRoleName" "fullnameOverride names all objects"
  "commonLabels" "additionalLabels are those of all objects"
  "defaultNodeImageFamily" "agentPool.osSKU of the chart gpu-provisioner names the node image"
  "deploymentName" "fullnameOverride names all objects"
  "deploymentStrategy" "strategy says how a new version takes the place of the old one"
  "featureGates" "nodeAPI says how nodes are asked for, serving.variant what serves models"
  "flux2" "Flux is not installed, leave it out"
  "gpu-feature-discovery" "it is not installed, leave it out"
  "image.repository" "image.registry names the registry and the folder of all images"
  "imagePullSecrets" "image.pullSecrets lists the names of the Secrets"
  "inferenceSetClusterRoleBindingName" "there are no InferenceSets, leave it out"
  "inferenceSetClusterRoleName" "there are no InferenceSets, leave it out"
  "karpenterProvider" "nodeClaim.nodeClassRef names the node class of your Karpenter"
  "karpenterProviders" "nodeClaim.nodeClassRef names a node class that you made"
  "local-csi-driver" "no driver is installed, leave it out"
  "localCSIDriver" "no driver is installed, leave it out"
  "loggingConfigMapName" "logging.level is the level of the log"
  "nodeProvisioner" "nodeAPI says how nodes are asked for: NodeClaim with Karpenter"
  "nvidiaDevicePlugin.daemonsetName" "it is called after the release, leave it out"
  "nvidiaDevicePlugin.imagePullPolicy" "it is pulled if it is not there, leave it out"
  "podSecurityContext" "its Pods always run without rights, leave it out"
  "podTemplateLabels" "podLabels are those of the controller's Pods"
  "presetBaseImageName" "serving.images and tuning.images name single images"
  "presetBaseImageTag" "image.tag is the tag of all images"
  "presetBaseRegistryName" "image.registry names the registry of the images that serve and tune"
  "roleBindingName" "fullnameOverride names all objects"
  "roleName" "fullnameOverride names all objects"
  "securityContext" "its Pods always run without rights, leave it out"
  "selectorLabels" "podLabels are those of the controller's Pods"
  "serviceAccountName" "serviceAccount.name names the account"
  "serviceName" "fullnameOverride names all objects"
  "spotInstance" "nodeClaim.extraRequirements asks for a capacity type"
  "webhook" "there is no webhook: admissionPolicies.enabled switches the rules that the API server checks"
)) }}
{{- include "kaito.checkNameAndPorts" (dict "root" . "metrics" .Values.metrics.port "health" .Values.healthProbe.port
  "metricsName" "metrics.port" "healthName" "healthProbe.port") }}
{{- include "kaito.refuseTwice" (dict "name" "extraEnv" "list" .Values.extraEnv) }}
{{- include "kaito.refuseTwice" (dict "name" "serving.extraEnv" "list" .Values.serving.extraEnv) }}
{{- with .Values.strategy.rollingUpdate }}
{{- if and (regexMatch "^0+%?$" (toString .maxSurge)) (regexMatch "^0+%?$" (toString .maxUnavailable)) }}
{{- fail "strategy.rollingUpdate.maxSurge and maxUnavailable are both 0, so that no Pod could take another's place: set one of them to 1" }}
{{- end }}
{{- end }}
{{- range $registry, $mirror := .Values.registries.mirrors }}
{{- if contains "/" $registry }}
{{- fail (printf "registries.mirrors names %q: write a registry's host[:port] without https:// and folder, as docker.io" $registry) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What names one version of an image: (dict "tag" "0.1.0" "digest" "sha256:..."); the digest wins. */}}
{{- define "kaito.version" -}}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag }}{{ end }}
{{- end }}

{{/* Image of the controllers and of init containers. */}}
{{- define "kaito.hooksImage" -}}
{{ include "kaito.imageRegistry" . }}/kaito-hooks
{{- include "kaito.version" (dict "tag" (include "kaito.tag" .) "digest" .Values.image.digest) }}
{{- end }}

{{/* Images of serving or tuning by variant: (dict "root" $ "name" "serving" "images" map). */}}
{{- define "kaito.variantImages" -}}
{{- $root := .root }}
{{- $name := .name }}
{{- $registry := include "kaito.imageRegistry" $root }}
{{- range $variant, $image := .images }}
{{ $variant }}: {{ default (printf "%s/kaito-%s:%s-%s" $registry $name (include "kaito.tag" $root) $variant) $image | quote }}
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
{{- $says := dict "totalGPUMemoryGiB" "how much GPU memory the model needs" "weights" "where its weights come from" }}
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
{{- range $name, $preset := $presets }}
{{- range $field := list "totalGPUMemoryGiB" "weights" }}
{{- if not (hasKey $preset $field) }}
{{- fail (printf "presets.%s has no %s, and is none of ours that could be changed: say %s, or correct the name" $name $field (get $says $field)) }}
{{- end }}
{{- end }}
{{- with $preset.weights.image }}
{{- if not (or .tag (eq (default "public" $preset.accessMode) "private")) }}
{{- fail (printf "presets.%s.weights.image has no tag: name the version of the image, or set accessMode: private, so that each Workspace names an image of its own" $name) }}
{{- end }}
{{- if and .tag (not (regexMatch "^[a-z0-9]+([._-]+[a-z0-9]+)*$" $name)) }}
{{- fail (printf "presets.%s: weights.image would be kaito-%s, and no image has such a name: write the preset's name in small letters, or take other weights" $name $name) }}
{{- end }}
{{- end }}
{{- if and $preset.distributed $preset.engines (ne (join "," $preset.engines) "vllm") }}
{{- fail (printf "presets.%s is distributed, and vllm alone serves such: set presets.%s.engines to [vllm]" $name $name) }}
{{- end }}
{{- end }}
{{- toJson $presets }}
{{- end }}

{{/* Instance types by name, as JSON: those of the cloud with the user's changes; null removes one. */}}
{{- define "kaito.instanceTypes" -}}
{{- $says := dict "gpuCount" "how many GPUs a node has" "totalGPUMemoryGiB" "how much memory its GPUs have together" }}
{{- $types := dict }}
{{- $spelled := dict }}
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
{{- range $name, $type := $types }}
{{- range $field := list "gpuCount" "totalGPUMemoryGiB" }}
{{- if not (hasKey $type $field) }}
{{- fail (printf "instanceTypes.%s has no %s, and is none of ours that could be changed: say %s, or correct the name" $name $field (get $says $field)) }}
{{- end }}
{{- end }}
{{- $same := get $spelled (lower $name) }}
{{- if $same }}
{{- fail (printf "instanceTypes has %s and %s, which are one type, because the case of letters does not count: change the one that is there, or set it to null" $same $name) }}
{{- end }}
{{- $spelled = set $spelled (lower $name) $name }}
{{- end }}
{{- toJson $types }}
{{- end }}

{{/* A map as YAML, in the order of its keys: toYaml has none that lasts for names such as llama-2-13b and llama-2-13b-chat. */}}
{{- define "kaito.entries" -}}
{{- if not . }}{}{{ end }}
{{- range $name := keys . | sortAlpha }}
{{ dict $name (get $ $name) | toYaml }}
{{- end }}
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
{{- concat (get $ofCloud .Values.cloudProviderName) (default list .Values.uncheckedInstanceTypePrefixes) | default list | toJson }}
{{- end }}

{{/* Names of the Secrets that may pull images, as JSON; umbrella charts write them as names or as [{name}]. */}}
{{- define "kaito.pullSecretNames" -}}
{{- $names := default list .Values.image.pullSecrets }}
{{- range (default dict .Values.global).imagePullSecrets }}
{{- if kindIs "map" . }}
{{- $names = append $names .name }}
{{- else }}
{{- $names = append $names . }}
{{- end }}
{{- end }}
{{- $names | uniq | toJson }}
{{- end }}

{{/* Secrets that may pull a Pod's images. */}}
{{- define "kaito.pullSecrets" -}}
{{- with include "kaito.pullSecretNames" . | fromJsonArray }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Environment of the controller, as YAML list. What extraEnv names is left out here, so that every variable is there once. */}}
{{- define "kaito.env" -}}
{{- $own := dict }}
{{- range .Values.extraEnv }}
{{- $own = set $own .name true }}
{{- end }}
{{- $variables := list
  (list "CLOUD_PROVIDER" .Values.cloudProviderName)
  (list "CLUSTER_NAME" .Values.clusterName)
  (list "PRESET_REGISTRY_NAME" .Values.presetRegistryName)
  (list "SYSTEM_NAMESPACE" .Release.Namespace)
  (list "RELEASE_NAMESPACE" .Release.Namespace)
  (list "LOG_LEVEL" .Values.logging.level)
  (list "METRICS_PORT" .Values.metrics.port)
  (list "HEALTH_PROBE_PORT" .Values.healthProbe.port)
  (list "LEADER_ELECTION_NAME" (include "kaito.leaseName" .))
  (list "LEADER_ELECTION_NAMESPACE" .Release.Namespace)
}}
{{- range $variables }}
{{- if not (hasKey $own (index . 0)) }}
- {name: {{ index . 0 }}, value: {{ index . 1 | quote }}}
{{- end }}
{{- end }}
{{- if not (hasKey $own "POD_NAME") }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Stops helm at a variable that a list of the user's has twice: (dict "name" "extraEnv" "list" .Values.extraEnv). */}}
{{- define "kaito.refuseTwice" -}}
{{- $seen := dict }}
{{- range .list }}
{{- if hasKey $seen .name }}
{{- fail (printf "%s has %s twice: leave one of them out" $.name .name) }}
{{- end }}
{{- $seen = set $seen .name true }}
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

{{/* Name of the device plugin's DaemonSet. */}}
{{- define "kaito.devicePluginName" -}}
{{ include "kaito.fullname" . }}-nvidia-device-plugin
{{- end }}

{{/* Namespace of the device plugin. */}}
{{- define "kaito.devicePluginNamespace" -}}
{{- default .Release.Namespace .Values.nvidiaDevicePlugin.namespace }}
{{- end }}

{{/* Labels that select the device plugin's Pods, and none of the controller's. */}}
{{- define "kaito.devicePluginSelectorLabels" -}}
app.kubernetes.io/name: nvidia-device-plugin
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* Metadata of an object that lives as long as a hook: (dict "root" $ "suffix" "x" "events" "pre-upgrade" "weight" 0 "namespaced" true). */}}
{{- define "kaito.hookMetadata" -}}
name: {{ include "kaito.fullname" .root }}-{{ .suffix }}
{{- if .namespaced }}
namespace: {{ .root.Release.Namespace | quote }}
{{- end }}
labels:
  {{- include "kaito.hookLabels" .root | nindent 2 }}
annotations:
  {{- /* Helm 3.18 and newer print why a hook failed, or what .logs asks for. */}}
  {{- $own := dict
    "helm.sh/hook" .events
    "helm.sh/hook-weight" (toString .weight)
    "helm.sh/hook-delete-policy" "before-hook-creation,hook-succeeded"
    "helm.sh/hook-output-log-policy" (default "hook-failed" .logs) }}
  {{- merge $own (default dict .root.Values.additionalAnnotations) | toYaml | nindent 2 }}
{{- end }}

{{/* Labels of hooks; the controller's selector must not catch their Pods. */}}
{{- define "kaito.hookLabels" -}}
{{- $own := dict "app.kubernetes.io/name" (printf "%s-hook" (include "kaito.name" .)) "app.kubernetes.io/instance" .Release.Name }}
{{- merge $own (default dict .Values.additionalLabels) | toYaml }}
{{- end }}

{{/*
What keeps the proxy of a service mesh out of a Pod that ends, because the proxy never would. Istio and Kuma read labels, their older
releases annotations.
*/}}
{{- define "kaito.noProxyLabels" -}}
sidecar.istio.io/inject: "false"
kuma.io/sidecar-injection: disabled
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
  namespace: {{ .root.Release.Namespace | quote }}
{{- end }}

{{/* A hook's Job: kaito_hooks.helm with .command; .configMap mounts the ConfigMap of the hook's name. */}}
{{- define "kaito.hookJob" }}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "kaito.hookMetadata" (merge (dict "namespaced" true) .) | nindent 2 }}
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
        {{- merge (include "kaito.hookLabels" .root | fromYaml) (include "kaito.noProxyLabels" . | fromYaml) | toYaml | nindent 8 }}
      annotations:
        {{- include "kaito.noProxyLabels" . | nindent 8 }}
        linkerd.io/inject: disabled
        consul.hashicorp.com/connect-inject: "false"
        openservicemesh.io/sidecar-injection: disabled
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
          {{- toYaml .root.Values.hooks.resources | nindent 10 }}
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
