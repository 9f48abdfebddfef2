# SPDX-License-Identifier: LGPL-2.1-or-later
# Completion of pmemctl for bash.

_pmemctl_regions()
{
	pmemctl list --json 2>/dev/null | sed -n 's/^ *"region": "\(.*\)",$/\1/p'
}

_pmemctl()
{
	local verbs="list status flush wait stats acknowledge watch doctor run serve"
	local options="--host= --retry --json --quiet --help --version"
	local flush_options="--all --datasync --fallback --no-wait --scope= --timeout="
	local serve_options="--qmp= --backing= --listen= --state="
	local stats_options="--openmetrics --output="
	local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} option= verb= i
	local value=$word
	local IFS=$' \t\n'

	for ((i = 1; i < COMP_CWORD; i++)); do
		case " $verbs " in
		*" ${COMP_WORDS[i]} "*)
			verb=${COMP_WORDS[i]}
			break
			;;
		esac
	done

	# From its command on it is for that one.
	for ((i++; i < COMP_CWORD; i++)); do
		if [[ $verb == run && ${COMP_WORDS[i]} == -- && $(type -t _command_offset) == function ]]; then
			_command_offset $((i + 1))
			return
		fi
	done

	# --OPTION VALUE is two words, --OPTION=VALUE three.
	if [[ $word == = ]]; then
		option=$previous value=
	elif [[ $previous == = ]]; then
		option=${COMP_WORDS[COMP_CWORD - 2]}
		[[ ${COMP_WORDS[COMP_CWORD - 4]-} == --backing ]] && option=--backing-file
	elif [[ $previous == --@(backing|host|listen|loss|output|qmp|scope|state|timeout) ]]; then
		option=$previous
	fi

	COMPREPLY=()
	if [[ $verb == run ]]; then
		COMPREPLY=($(compgen -W "--" -- "$word"))
	elif [[ $option == --scope ]]; then
		COMPREPLY=($(compgen -W "file filesystem region" -- "$value"))
	elif [[ $option == --@(backing-file|host|listen|output|qmp|state) ]]; then
		compopt -o filenames
		COMPREPLY=($(compgen -f -- "$value"))
	elif [[ $option ]]; then
		:
	elif [[ $verb == acknowledge && $word == -* ]]; then
		COMPREPLY=($(compgen -W "$options --loss=" -- "$word"))
		[[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
	elif [[ $word == -* ]]; then
		[[ -z $verb || $verb == flush ]] && options="$options $flush_options"
		[[ $verb == wait || " ${COMP_WORDS[*]} " == *" --host "* ]] && options="$options --timeout="
		[[ $verb == serve ]] && options="$options $serve_options"
		[[ $verb == stats ]] && options="$options $stats_options"
		[[ $verb == doctor ]] && options="$options --record"
		COMPREPLY=($(compgen -W "$options" -- "$word"))
		[[ ${COMPREPLY[0]-} == *= ]] && compopt -o nospace
	elif [[ -z $verb ]]; then
		COMPREPLY=($(compgen -W "$verbs" -- "$word"))
	elif [[ $verb == status || $verb == stats || $verb == acknowledge ]]; then
		COMPREPLY=($(compgen -W "$(_pmemctl_regions)" -- "$word"))
	elif [[ $verb == flush || $verb == doctor ]]; then
		compopt -o filenames
		local IFS=$'\n'
		COMPREPLY=($(compgen -W "$(_pmemctl_regions)" -- "$word") $(compgen -f -- "$word"))
	fi
}

complete -F _pmemctl pmemctl
