{{/* Base name of the chart's objects. */}}
{{- define "gpu-provisioner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{/* Name of the chart's objects: the release, with the chart's name unless it is in there already. */}}
{{- define "gpu-provisioner.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "gpu-provisioner.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "gpu-provisioner.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that select the controller's Pods; they never change. */}}
{{- define "gpu-provisioner.selectorLabels" -}}
app.kubernetes.io/name: {{ include "gpu-provisioner.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. */}}
{{- define "gpu-provisioner.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "gpu-provisioner.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.additionalLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels and annotations of every object but hooks: (dict "root" $ "annotations" map). */}}
{{- define "gpu-provisioner.metadata" -}}
labels:
  {{- include "gpu-provisioner.labels" .root | nindent 2 }}
{{- with merge (dict) (default dict .annotations) .root.Values.additionalAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* ServiceAccount of the controller; it is part of the identity's federated subject. */}}
{{- define "gpu-provisioner.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "gpu-provisioner.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Name of the Lease, for the environment and the Role alike. */}}
{{- define "gpu-provisioner.leaseName" -}}
{{ include "gpu-provisioner.fullname" . }}-leader-election
{{- end }}

{{/* The container's image. */}}
{{- define "gpu-provisioner.image" -}}
{{- $own := .Values.controller.image }}
{{- $repository := default (printf "%s/kaito-hooks" .Values.image.registry) $own.repository }}
{{- $tag := $own.tag | default .Values.image.tag | default .Chart.AppVersion }}
{{- if $own.digest }}
{{- printf "%s@%s" $repository $own.digest }}
{{- else if eq $tag "latest" }}
{{- fail "the image's tag is latest: name a version, so that all replicas run the same image" }}
{{- else }}
{{- printf "%s:%s" $repository $tag }}
{{- end }}
{{- end }}

{{/* What every container of this chart is denied. */}}
{{- define "gpu-provisioner.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Pods of this chart need no rights on their node. */}}
{{- define "gpu-provisioner.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Whether the Pod gets a token that Azure accepts as its identity. */}}
{{- define "gpu-provisioner.workloadIdentity" -}}
{{- if eq .Values.deploymentMode "self-hosted" }}true{{ end }}
{{- end }}

{{/* The fields of agentPool that are set, as JSON; nothing if none is. */}}
{{- define "gpu-provisioner.agentPool" -}}
{{- $fields := dict }}
{{- range $name, $value := .Values.agentPool }}
{{- if $value }}
{{- $fields = set $fields $name $value }}
{{- end }}
{{- end }}
{{- if $fields }}{{ toJson $fields }}{{ end }}
{{- end }}

{{/*
Environment of the controller, as YAML list. What controller.env names is left out here, so that every variable is there
once; an empty setting is left out, so that envFrom can give it.
*/}}
{{- define "gpu-provisioner.env" -}}
{{- $values := .Values }}
{{- $own := dict }}
{{- range $values.controller.env }}
{{- $own = set $own .name true }}
{{- end }}
{{- $cloud := $values.settings.azure }}
{{- $variables := list
  (list "DEPLOYMENT_MODE" $values.deploymentMode)
  (list "ARM_SUBSCRIPTION_ID" $cloud.subscriptionId)
  (list "ARM_RESOURCE_GROUP" $cloud.resourceGroup)
  (list "AZURE_CLUSTER_NAME" $cloud.clusterName)
  (list "LOCATION" $cloud.location)
  (list "AZURE_CLIENT_ID" $values.workloadIdentity.clientId)
  (list "AZURE_TENANT_ID" $values.workloadIdentity.tenantId)
  (list "AZURE_AUTHORITY_HOST" $values.azure.authorityHost)
  (list "ARM_ENDPOINT" $values.azure.armEndpoint)
  (list "ARM_TOKEN_SCOPE" $values.azure.tokenScope)
  (list "ARM_API_VERSION" $values.azure.apiVersion)
  (list "AGENT_POOL" (include "gpu-provisioner.agentPool" .))
  (list "NODE_API" $values.nodeAPI)
  (list "NODE_CLASS_GROUP" $values.nodeClaim.nodeClassRef.group)
  (list "NODE_CLASS_KIND" $values.nodeClaim.nodeClassRef.kind)
  (list "REGISTRATION_TIMEOUT" $values.provisioner.registrationTimeout)
  (list "LAUNCH_TIMEOUT" $values.provisioner.launchTimeout)
  (list "NODE_REPAIR_TIMEOUT" $values.provisioner.nodeRepairTimeout)
  (list "TERMINATION_GRACE_PERIOD" $values.provisioner.terminationGracePeriod)
  (list "MANAGE_BY_LABEL" $values.provisioner.manageByLabel)
  (list "DELETE_ON_INSUFFICIENT_CAPACITY" $values.provisioner.deleteOnInsufficientCapacity)
  (list "GC_INTERVAL" $values.provisioner.gcInterval)
  (list "POOL_POLL_INTERVAL" $values.provisioner.poolPollInterval)
  (list "METRICS_PORT" $values.controller.metrics.port)
  (list "HEALTH_PROBE_PORT" $values.controller.healthProbe.port)
  (list "LOG_LEVEL" (default $values.logLevel $values.controller.logLevel))
  (list "LEADER_ELECTION_NAME" (include "gpu-provisioner.leaseName" .))
  (list "LEADER_ELECTION_NAMESPACE" .Release.Namespace)
}}
{{- if include "gpu-provisioner.workloadIdentity" . }}
{{- $variables = append $variables (list "AZURE_FEDERATED_TOKEN_FILE" "/var/run/secrets/azure/tokens/azure-identity-token") }}
{{- end }}
{{- if $values.azure.caBundle }}
{{- $variables = append $variables (list "REQUESTS_CA_BUNDLE" "/etc/gpu-provisioner/ca/ca.crt") }}
{{- end }}
{{- range $variables }}
{{- $name := index . 0 }}
{{- $value := index . 1 | toString }}
{{- if and $value (not (hasKey $own $name)) }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- if not (hasKey $own "POD_NAME") }}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
{{- end }}
{{- with $values.controller.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the Pods of this chart run. */}}
{{- define "gpu-provisioner.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" }}
{{- with get $.Values $key }}
{{- dict $key . | toYaml | nindent 0 }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels of hooks; the controller's selector must not catch their Pods. */}}
{{- define "gpu-provisioner.hookLabels" -}}
app.kubernetes.io/name: {{ include "gpu-provisioner.name" . }}-hook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Metadata of an object that lives as long as a hook: (dict "root" $ "suffix" "x" "events" "pre-upgrade" "weight" 1). */}}
{{- define "gpu-provisioner.hookMetadata" -}}
name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "gpu-provisioner.hookLabels" .root | nindent 2 }}
annotations:
  helm.sh/hook: {{ .events }}
  helm.sh/hook-weight: {{ .weight | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* Binds a hook's ClusterRole to its ServiceAccount; both are called like the binding. */}}
{{- define "gpu-provisioner.hookBinding" }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  {{- include "gpu-provisioner.hookMetadata" . | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
subjects:
- kind: ServiceAccount
  name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
  namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* A hook's Job: kaito_hooks.helm with .command; .configMap mounts the ConfigMap of the hook's name. */}}
{{- define "gpu-provisioner.hookJob" }}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "gpu-provisioner.hookMetadata" . | nindent 2 }}
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
        {{- include "gpu-provisioner.hookLabels" .root | nindent 8 }}
    spec:
      {{- with .root.Values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      restartPolicy: Never
      serviceAccountName: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
      securityContext:
        {{- include "gpu-provisioner.podSecurityContext" .root | nindent 8 }}
      containers:
      - name: {{ .suffix }}
        image: {{ include "gpu-provisioner.image" .root | quote }}
        imagePullPolicy: {{ .root.Values.imagePullPolicy }}
        command: {{ concat (list "python" "-m" "kaito_hooks.helm") .command | toJson }}
        resources:
          requests: {cpu: 50m, memory: 64Mi}
          limits: {memory: 256Mi}
        securityContext:
          {{- include "gpu-provisioner.containerSecurityContext" .root | nindent 10 }}
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
          name: {{ include "gpu-provisioner.fullname" .root }}-{{ .suffix }}
      {{- end }}
      {{- include "gpu-provisioner.scheduling" .root | nindent 6 }}
{{- end }}
